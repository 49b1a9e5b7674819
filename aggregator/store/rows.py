"""The rows of the journal, as values, and the schema that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from protocol.codecs import Codec

__all__ = [
    "SCHEMA",
    "SCHEMA_VERSION",
    "AnswerRow",
    "AssignmentRow",
    "AssignmentState",
    "ClientRow",
    "ClientStatus",
    "RoundPhase",
    "RoundRow",
    "UploadRow",
    "UploadState",
    "VersionRow",
]


class ClientStatus(StrEnum):
    """Whether a device's key is taken."""

    ENROLLED = "enrolled"
    REVOKED = "revoked"


class RoundPhase(StrEnum):
    """How far a round is decided."""

    OPEN = "open"
    """Updates are taken."""
    CLOSING = "closing"
    """The cohort is fixed: its durable uploads. The merge can be done, or done again."""
    COMMITTED = "committed"
    """The next version stands."""


class AssignmentState(StrEnum):
    """What became of an assignment."""

    OPEN = "open"
    SUBMITTED = "submitted"
    DECLINED = "declined"
    REJECTED = "rejected"
    EXPIRED = "expired"


class UploadState(StrEnum):
    """What became of an upload."""

    RECEIVING = "receiving"
    """Offered; ``have`` bytes are durable."""
    DURABLE = "durable"
    """Checked and stored as an object: acknowledged, never lost."""
    MERGED = "merged"
    """Part of a committed version."""
    REJECTED = "rejected"
    """Refused with code and reason."""
    EXPIRED = "expired"
    """Its assignment expired before it was here."""


@dataclass(frozen=True, kw_only=True)
class ClientRow:
    """One device."""

    key: str
    """CURVE public key, Z85."""
    name: str
    """What the operator calls it; not unique."""
    status: ClientStatus
    """Enrolled or revoked."""
    enrolled_at: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One round."""

    number: int
    """From 1."""
    version: int
    """The live version when it was opened."""
    seed: int
    """The run's seed when it opened."""
    phase: RoundPhase = RoundPhase.OPEN
    """How far it is."""
    elapsed_s: float = 0.0
    """How long it has been open while the daemon ran, seconds."""
    population_json: str = "{}"
    """Examples by client of all that were present when it opened, as a JSON object; empty where no weight needs it."""


@dataclass(frozen=True, kw_only=True)
class AssignmentRow:
    """What one client was given for one round."""

    token: str
    """32 hex digits, unique."""
    round: int
    """The round it was given in; one assignment per client and round."""
    version: int
    """The version it hands out."""
    client: str
    """The client's key."""
    document: bytes
    """The :class:`~protocol.assignment.Assignment`, as JSON."""
    state: AssignmentState = AssignmentState.OPEN
    """What became of it."""
    reason: str = ""
    """Why, if it was declined, rejected or expired."""


@dataclass(frozen=True, kw_only=True)
class UploadRow:
    """One update of one client."""

    id: str
    """:func:`protocol.identity.upload_id`."""
    round: int
    """Its assignment's round; once durable, the round it counts in. One upload per client and round, refused ones
    apart."""
    client: str
    """The client's key."""
    token: str
    """The assignment that it answers."""
    sha256: str
    """Digest of the object, hex."""
    size: int
    """Its size, bytes."""
    num_examples: int
    """Its weight."""
    metrics_json: str
    """The client's metrics, as a JSON object."""
    state: UploadState = UploadState.RECEIVING
    """What became of it."""
    have: int = 0
    """Contiguous bytes that were durable when last journalled."""
    code: str = ""
    """:class:`~protocol.errors.NackCode` of a refusal."""
    reason: str = ""
    """Why it was refused, for people."""


@dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """What one client answered to a probe."""

    token: str
    """The assignment that it answers."""
    client: str
    """The client's key."""
    num_examples: int
    """Its weight."""
    metrics_json: str
    """The answer, as a JSON object."""


@dataclass(frozen=True, kw_only=True)
class VersionRow:
    """One version of the global state."""

    version: int
    """From 0."""
    round: int
    """The round that made it; 0 for version 0."""
    state_digest: str
    """Object that holds the exact state."""
    body_digest: str
    """Object that holds the hand-out's body."""
    codec: Codec
    """Number format of the body."""
    slots: int
    """Slots in the body."""
    final_digest: str | None = None
    """Object that holds the body of the adapters that devices keep, made for the last round's version; None: there is
    no such object, and the hand-out's body serves."""


SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE token (
    hash TEXT PRIMARY KEY, expires_at REAL NOT NULL, created_at REAL NOT NULL,
    redeemed_by TEXT REFERENCES client (key), redeemed_at REAL
) STRICT;
CREATE TABLE client (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, enrolled_at REAL NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('enrolled', 'revoked'))
) STRICT;
CREATE TABLE version (
    version INTEGER PRIMARY KEY, round INTEGER NOT NULL UNIQUE, state_digest TEXT NOT NULL,
    body_digest TEXT NOT NULL, codec TEXT NOT NULL, slots INTEGER NOT NULL, final_digest TEXT
) STRICT;
CREATE TABLE round (
    number INTEGER PRIMARY KEY, version INTEGER NOT NULL REFERENCES version (version), seed INTEGER NOT NULL,
    elapsed_s REAL NOT NULL, population_json TEXT NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('open', 'closing', 'committed'))
) STRICT;
CREATE TABLE report (round INTEGER PRIMARY KEY REFERENCES round (number), lines TEXT NOT NULL) STRICT;
CREATE TABLE assignment (
    token TEXT PRIMARY KEY, round INTEGER NOT NULL REFERENCES round (number),
    version INTEGER NOT NULL REFERENCES version (version), client TEXT NOT NULL,
    document BLOB NOT NULL, reason TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'submitted', 'declined', 'rejected', 'expired')),
    UNIQUE (round, client)
) STRICT;
CREATE TABLE upload (
    id TEXT PRIMARY KEY, round INTEGER NOT NULL REFERENCES round (number), client TEXT NOT NULL,
    token TEXT NOT NULL REFERENCES assignment (token), sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    num_examples INTEGER NOT NULL, metrics_json TEXT NOT NULL, have INTEGER NOT NULL, code TEXT NOT NULL,
    reason TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('receiving', 'durable', 'merged', 'rejected', 'expired')),
    CHECK (have BETWEEN 0 AND size)
) STRICT;
CREATE TABLE answer (
    token TEXT PRIMARY KEY REFERENCES assignment (token), client TEXT NOT NULL, num_examples INTEGER NOT NULL,
    metrics_json TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_upload ON upload (round, client) WHERE state <> 'rejected';
CREATE INDEX uploads_of_assignment ON upload (token);
CREATE INDEX uploads_of_round ON upload (round);
CREATE INDEX open_assignments ON assignment (round, client) WHERE state = 'open';
CREATE INDEX uploads_under_way ON upload (round, client, id) WHERE state IN ('receiving', 'durable');
"""
"""Clients of assignments and uploads are plain keys, so that a simulation needs to enrol nobody."""
