"""Sessions of all connected devices: frames in, frames out, over whatever carries them.

The ROUTER socket feeds it in the daemon, a plain queue in a simulation. Identity is the public key that the transport
authenticated; the peer id is only where to send an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from aggregator.errors import StoreFull
from aggregator.federation import Federation
from protocol import limits, messages
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError
from protocol.messages import Role
from protocol.session import Session
from protocol.states import State

__all__ = ["Hub", "Outgoing", "PeerInfo"]

STRIKES_MAX = 8
"""Malformed or illegal messages after which a connection is no longer listened to."""

RETRY_MS = 60_000
"""When a device may try again for which there was no room on the disk."""

Outgoing = tuple[bytes, list[bytes | memoryview]]
"""Where to send, and the frames."""


@dataclass
class PeerInfo:
    """What the operator may want to know about a device."""

    heard_at: float
    """When its last message came, on the clock of ``now``."""
    bytes_in: int = 0
    """Bytes of all its frames, over all its connections."""
    bytes_out: int = 0
    """Bytes of all frames sent to it."""


@dataclass
class _Connection:
    key: str
    session: Session = field(default_factory=lambda: Session(Role.AGGREGATOR))
    strikes: int = 0


class Hub:
    """Runs one session per connection.

    Args:
        federation: What the messages are about.
        standing: Why a key may not speak (``NOT_ENROLLED``, ``REVOKED``), or None; asked for every message, so that a
            revocation takes effect on live connections.
        epoch: Any text that changes with every start of the daemon.
    """

    def __init__(self, federation: Federation, standing: Callable[[str], NackCode | None], epoch: str) -> None:
        self._federation, self._standing, self._epoch = federation, standing, epoch
        self._connections: dict[bytes, _Connection] = {}
        self._latest: dict[str, bytes] = {}
        self.devices: dict[str, PeerInfo] = {}

    def feed(self, peer: bytes, key: str, frames: Sequence[bytes | memoryview], now: float) -> list[Outgoing]:
        """Takes one message.

        Args:
            peer: Where it came from.
            key: The authenticated public key, Z85.
            frames: The message, without routing id.
            now: The time, seconds.

        Returns:
            What to send.
        """
        connection = self._connections.get(peer)
        if connection is None or connection.key != key:
            connection = self._connections[peer] = _Connection(key)
        if connection.strikes > STRIKES_MAX or connection.session.state is State.CLOSED:
            return []
        device = self.devices.setdefault(key, PeerInfo(now))
        device.heard_at = now
        device.bytes_in += sum(map(len, frames))
        self._latest[key] = peer
        return self._sent(peer, connection, self._answer(connection, frames, now))

    def poll(self, now: float) -> list[Outgoing]:
        """What finished work and passing time have to say to devices that are connected."""
        outgoing = []
        for reply in self._federation.poll(now):
            peer = self._latest.get(reply.client, b"")
            connection = self._connections.get(peer)
            if connection is not None and connection.key == reply.client:
                outgoing += self._sent(peer, connection, reply.message)
        return outgoing

    def next_wakeup(self, now: float) -> float | None:
        """When to call :meth:`poll` at the latest, if nothing else happens."""
        return self._federation.next_wakeup(now)

    def forget(self, peer: bytes) -> None:
        """The transport lost this connection."""
        connection = self._connections.pop(peer, None)
        if connection is not None and self._latest.get(connection.key) == peer:
            del self._latest[connection.key]

    def _answer(
        self, connection: _Connection, frames: Sequence[bytes | memoryview], now: float
    ) -> messages.Message | None:
        message = None
        try:
            message = connection.session.receive(frames)
            refused = self._standing(connection.key)
            if refused is not None:
                connection.strikes = STRIKES_MAX + 1
                raise RemoteProtocolError(_STANDING[refused], refused)
            answer = self._dispatch(connection, message, now)
        except RemoteProtocolError as error:
            if message is None:
                connection.strikes += 1
            answer = _nack(error, message)
        except StoreFull as error:
            later = RemoteProtocolError(str(error), NackCode.RETRY_LATER)
            answer = replace(_nack(later, message), retry_after_ms=RETRY_MS)
        return None if answer is None else replace(answer, q=0 if message is None else message.q)

    def _dispatch(self, connection: _Connection, message: messages.Message, now: float) -> messages.Message | None:
        key, federation = connection.key, self._federation
        match message:
            case messages.Hello():
                return self._welcome(message)
            case messages.Ready():
                return federation.ready(key, message, now)
            case messages.Get():
                return federation.get(message)
            case messages.Offer():
                return federation.offer(key, message, now)
            case messages.Chunk():
                return federation.chunk(key, message, now)
            case messages.Report():
                return federation.report(key, message, now)
            case messages.Decline():
                return federation.decline(key, message, now)
            case messages.Ping():
                return messages.Pong()
            case messages.Bye():
                return None
        raise RemoteProtocolError(f"{message.type} is not served here", NackCode.ILLEGAL)

    def _welcome(self, message: messages.Hello) -> messages.Welcome:
        version = limits.PROTOCOL_VERSION
        if not message.version_min <= version <= message.version_max:
            raise RemoteProtocolError(
                f"you speak versions {message.version_min}..{message.version_max}, this aggregator speaks {version}: "
                "update the older side",
                NackCode.INCOMPATIBLE,
            )
        manifest = self._federation.manifest
        return messages.Welcome(
            version=version,
            run=self._federation.config.run,
            epoch=self._epoch,
            manifest=manifest.digest,
            manifest_bytes=len(manifest.to_json()),
            chunk_max=limits.CHUNK_MAX_BYTES,
        )

    def _sent(self, peer: bytes, connection: _Connection, message: messages.Message | None) -> list[Outgoing]:
        if message is None:
            return []
        try:
            frames = connection.session.send(message)
        except LocalProtocolError:
            # The device reconnected or gave up meanwhile; it asks again, and every answer can be given again.
            return []
        self.devices[connection.key].bytes_out += sum(map(len, frames))
        return [(peer, frames)]


_STANDING = {
    NackCode.REVOKED: "this device's key was revoked; ask the operator",
    NackCode.NOT_ENROLLED: "this device's key is not enrolled; ask the operator for a ticket",
}


def _nack(error: RemoteProtocolError, message: messages.Message | None) -> messages.Nack:
    ref = ""
    match message:
        case messages.Offer() | messages.Chunk():
            ref = message.upload
        case messages.Decline() | messages.Report():
            ref = message.token
        case messages.Get():
            ref = message.digest
    return messages.Nack(code=error.code, reason=str(error)[: limits.REASON_MAX_CHARS], ref=ref)
