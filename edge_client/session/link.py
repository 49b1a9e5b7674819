"""One connection as the engine sees it: its session, who greeted, and when it counts as dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edge_client.session.activities import Activity, Declining, Uploading
from edge_client.session.events import Connect, Disconnect, Effect, Send
from protocol import limits
from protocol.header import Frames
from protocol.messages import Bye, Hello, Message, Ping, Role, Welcome
from protocol.session import Session
from protocol.states import State

__all__ = ["Link"]

GREETING_TIMEOUT_S = 10.0
"""From dialling to ``WELCOME``, connecting and greeting each."""
STALL_TIMEOUT_S = 90.0
"""Without progress of what is asked, or without any sign of life while nothing is."""
DECLINE_TIMEOUT_S = 10.0
"""For a refusal to be acknowledged; the app waits for the error meanwhile."""
PING_INTERVAL_S = 20.0


class Link:
    """The current connection, if any.

    Args:
        out: Takes the effects.
        sdk: Name and version of this software.

    Attributes:
        welcome: What the aggregator said of itself; None until it has greeted.
    """

    def __init__(self, out: Callable[[Effect], None], sdk: str) -> None:
        self._out, self._sdk = out, sdk
        self._session: Session | None = None
        self.welcome: Welcome | None = None
        self._q = 0
        self._heard_at = self._said_at = self._progress_at = 0.0

    @property
    def dialled(self) -> bool:
        """Whether there is a connection, or one is being made."""
        return self._session is not None

    def dial(self, now: float) -> None:
        """Starts a new connection."""
        self._session, self.welcome = Session(Role.CLIENT), None
        self._progress_at = now
        self._out(Connect())

    def greet(self, now: float) -> None:
        """Opens the session: the connection is there."""
        if self._session is not None and self._session.state is State.START:
            self._progress_at = now
            version = limits.PROTOCOL_VERSION
            self.say(Hello, now, version_min=version, version_max=version, sdk=self._sdk)

    def drop(self, now: float, goodbye: str | None = None) -> None:
        """Ends the connection, with a word if there is one to say and somebody to hear it."""
        if goodbye is not None and self.welcome is not None:
            self.say(Bye, now, reason=goodbye)
        self._session = self.welcome = None
        self._out(Disconnect())

    def say(self, kind: type[Message], now: float, **fields: Any) -> int:
        """Sends one message and returns its number."""
        assert self._session is not None, "nothing is said while the link is down"
        self._q += 1
        self._out(Send(self._session.send(kind(q=self._q, **fields))))
        self._said_at = now
        return self._q

    def receive(self, frames: Frames, now: float) -> Message | None:
        """The message that came; None if it came after the end.

        Raises:
            RemoteProtocolError: The aggregator must not have sent this.
        """
        if self._session is None:
            return None
        message = self._session.receive(frames)
        self._heard_at = now
        return message

    def progressed(self, now: float) -> float:
        """Takes note that what is asked goes on; returns the seconds since it last did."""
        before, self._progress_at = self._progress_at, now
        return now - before

    def give_up_at(self, activity: Activity | None) -> float | None:
        """When the connection counts as dead."""
        if self._session is None:
            return None
        if self.welcome is None:
            return self._progress_at + GREETING_TIMEOUT_S
        if isinstance(activity, Declining):
            return self._progress_at + DECLINE_TIMEOUT_S
        nothing_due = activity is None or (isinstance(activity, Uploading) and activity.queued)
        return (self._heard_at if nothing_due else self._progress_at) + STALL_TIMEOUT_S

    def ping_at(self) -> float | None:
        """When a sign of life is due."""
        return None if self.welcome is None else self._said_at + PING_INTERVAL_S

    def ping(self, now: float) -> None:
        """Gives a sign of life, and asks for one."""
        self.say(Ping, now)
