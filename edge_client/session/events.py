"""What the engine is told and what it asks for: plain values, so that a run can be scripted, recorded and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_client.trainer import TrainerInfo
from edge_client.transport.base import LinkEvent
from protocol.assignment import Assignment
from protocol.header import Frames
from protocol.messages import Finished

__all__ = [
    "Complete",
    "Connect",
    "Disconnect",
    "Effect",
    "Event",
    "Fail",
    "Failed",
    "Forget",
    "Install",
    "Installed",
    "Open",
    "Opened",
    "Outgoing",
    "Pause",
    "Prepare",
    "Prepared",
    "Resume",
    "Seal",
    "Sealed",
    "Send",
    "Settled",
    "Stop",
    "Tick",
    "Train",
    "Trained",
    "Write",
]


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """A finished assignment that the aggregator has not acknowledged yet; it lies in the outbox."""

    assignment: Assignment
    """What it answers."""
    num_examples: int
    """Examples it rests on."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Local metrics."""
    sha256: str | None = None
    """Digest of the update, hex; None if the assignment returns metrics only."""
    data: memoryview = field(default=memoryview(b""), repr=False, compare=False)
    """The encoded update."""


@dataclass(frozen=True)
class Tick:
    """Time has passed; due when the engine's ``wake_at`` is reached."""


@dataclass(frozen=True)
class Opened:
    """Answers :class:`Open`."""

    digest: str
    have: int
    """Bytes already on disk, counted from the start."""


@dataclass(frozen=True)
class Sealed:
    """Answers :class:`Seal`."""

    digest: str
    ok: bool
    """Whether the bytes hash to the digest; if not, they are gone."""


@dataclass(frozen=True)
class Prepared:
    """Answers :class:`Prepare`."""

    info: TrainerInfo


@dataclass(frozen=True)
class Trained:
    """Answers :class:`Train`: the result is durable in the outbox."""

    item: Outgoing


@dataclass(frozen=True)
class Installed:
    """Answers :class:`Install`."""


@dataclass(frozen=True)
class Failed:
    """The job in hand (:class:`Prepare`, :class:`Train` or :class:`Install`) ended with an error."""

    error: Exception


@dataclass(frozen=True)
class Pause:
    """Ask for no new work; what is trained is still delivered."""


@dataclass(frozen=True)
class Resume:
    """The end of a :class:`Pause`."""


@dataclass(frozen=True)
class Stop:
    """Say goodbye and end; what is unfinished goes on at the next start."""


Event = LinkEvent | Tick | Opened | Sealed | Prepared | Trained | Installed | Failed | Pause | Resume | Stop
"""What the engine is told."""


@dataclass(frozen=True)
class Connect:
    """Open a new transport, dropping any old one."""


@dataclass(frozen=True)
class Disconnect:
    """Close the transport."""


@dataclass(frozen=True)
class Send:
    """Put these frames on the transport."""

    frames: Frames = field(repr=False)


@dataclass(frozen=True)
class Open:
    """Make room for an object; answer with :class:`Opened`."""

    digest: str
    size: int
    keep: frozenset[str] | None
    """Digests still needed: other objects, whole or partial, may be deleted. None: all may be needed."""


@dataclass(frozen=True)
class Write:
    """Write a piece of an object."""

    digest: str
    offset: int
    payload: bytes | memoryview = field(repr=False)


@dataclass(frozen=True)
class Seal:
    """All bytes of an object are written: verify and keep it; answer with :class:`Sealed`."""

    digest: str


@dataclass(frozen=True)
class Prepare:
    """Get the trainer ready for a manifest that is on disk; answer with :class:`Prepared` or :class:`Failed`."""

    manifest: str
    """Its digest."""


@dataclass(frozen=True)
class Train:
    """Carry out an assignment whose hand-out is on disk, store the result; :class:`Trained` or :class:`Failed`."""

    assignment: Assignment


@dataclass(frozen=True)
class Install:
    """Put the final adapter, which is on disk, to use; :class:`Installed` or :class:`Failed`."""

    finished: Finished


@dataclass(frozen=True)
class Forget:
    """Remove a result from the outbox."""

    token: str


@dataclass(frozen=True)
class Settled:
    """Tell the app how a finished assignment, or a request for work, was received."""

    item: Outgoing | None
    """The result, already out of the outbox; None if no work was given at all."""
    accepted: bool
    reason: str = ""
    """Why not, in the aggregator's words."""


@dataclass(frozen=True)
class Complete:
    """The run is over and the final adapter is in use."""

    finished: Finished


@dataclass(frozen=True)
class Fail:
    """The client cannot go on; raise this to the app."""

    error: Exception


Effect = (
    Connect | Disconnect | Send | Open | Write | Seal | Prepare | Train | Install | Forget | Settled | Complete | Fail
)
"""What the engine asks for, to be done in order."""
