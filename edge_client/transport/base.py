"""The seam between the client and whatever carries its frames: ZeroMQ on a device, memory in simulations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from protocol.header import Frames

__all__ = ["AuthenticationFailed", "Connected", "Disconnected", "LinkEvent", "Received", "Transport"]


@dataclass(frozen=True)
class Connected:
    """Frames can be sent from now on; the peer has proved who it is."""


@dataclass(frozen=True)
class Received:
    """One message came."""

    frames: Frames = field(repr=False)
    """Its frames; buffers may be views that live as long as they are referred to."""


@dataclass(frozen=True)
class Disconnected:
    """The link is gone and will not come back: close the transport and open a new one."""

    reason: str
    """Why, for people."""


@dataclass(frozen=True)
class AuthenticationFailed:
    """The peer refused this device's key: opening a new transport will not help by itself."""


LinkEvent = Connected | Received | Disconnected | AuthenticationFailed
"""What a transport has to tell."""


class Transport(Protocol):
    """One connection, from dialling to its end; used by one thread only.

    The first event is :class:`Connected`, or the connection never came about. After :class:`Disconnected` or
    :class:`AuthenticationFailed` there is no other event.
    """

    @property
    def bytes_sent(self) -> int:
        """Bytes of the frames the socket took."""

    @property
    def bytes_received(self) -> int:
        """Bytes of the frames taken from the socket."""

    def send(self, frames: Frames) -> None:
        """Queues one message; it is lost without notice if the link breaks."""

    def recv(self, timeout_s: float) -> LinkEvent | None:
        """The next event, or None if there was none for ``timeout_s`` seconds; 0 only looks."""

    def close(self) -> None:
        """Lets go of the connection; a second call does nothing."""
