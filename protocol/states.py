"""Which message is legal when: one table, read by both sides.

A session is one connection. Client and aggregator each keep a :class:`State` and move it by every message they send
or receive; since the table is the same, they agree. What has to outlive a connection (assignments, uploads) is keyed
by tokens and digests, never by the session.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["TRANSITIONS", "State"]


class State(StrEnum):
    """Where a session is."""

    START = "start"
    """Connected; nothing said yet."""
    GREETING = "greeting"
    """The client said ``HELLO``."""
    ENROLLING = "enrolling"
    """The client said ``ENROL``."""
    IDLE = "idle"
    """Nothing is asked; the client may be training. Objects can be fetched."""
    ASKING = "asking"
    """The client asked for work."""
    OFFERING = "offering"
    """An update was offered; no credit yet."""
    UPLOADING = "uploading"
    """Chunks travel within the credit."""
    REPORTING = "reporting"
    """Metrics or a refusal were sent."""
    CLOSED = "closed"
    """Over. A new connection starts a new session."""


_Moves = Mapping[str, State | None]

_ANYTIME: _Moves = {"PING": None, "PONG": None, "BYE": State.CLOSED}
# A chunk may cross the ACK or NACK that ends its upload, a repeated OFFER the ACK it asks for, and piece requests may
# still be answered, in any order.
_STRAY: _Moves = {"CHUNK": None, "CREDIT": None, "GET": None, "DATA": None, "ACK": None}


_MOVES: Mapping[State, _Moves] = {
    State.START: {"HELLO": State.GREETING, "ENROL": State.ENROLLING, "NACK": State.CLOSED},
    State.GREETING: {"WELCOME": State.IDLE, "NACK": State.CLOSED, **_ANYTIME},
    State.ENROLLING: {"ENROLLED": State.CLOSED, "NACK": State.CLOSED},
    State.IDLE: {
        **_STRAY,
        **_ANYTIME,
        "READY": State.ASKING,
        "OFFER": State.OFFERING,
        "REPORT": State.REPORTING,
        "DECLINE": State.REPORTING,
        "NACK": None,
    },
    State.ASKING: {
        **_STRAY,
        **_ANYTIME,
        "WAIT": State.IDLE,
        "TASK": State.IDLE,
        "FINISHED": State.IDLE,
        "NACK": State.IDLE,
    },
    State.OFFERING: {
        **_STRAY,
        **_ANYTIME,
        "OFFER": None,
        "CREDIT": State.UPLOADING,
        "ACK": State.IDLE,
        "NACK": State.IDLE,
    },
    State.UPLOADING: {**_STRAY, **_ANYTIME, "OFFER": None, "ACK": State.IDLE, "NACK": State.IDLE},
    State.REPORTING: {**_STRAY, **_ANYTIME, "ACK": State.IDLE, "NACK": State.IDLE},
    State.CLOSED: {},
}

TRANSITIONS: Mapping[State, Mapping[str, State]] = {
    state: {kind: target or state for kind, target in moves.items()} for state, moves in _MOVES.items()
}
"""``TRANSITIONS[state][message type]`` is the next state; a type that is absent is illegal there."""
