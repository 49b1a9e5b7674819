"""The ROUTER transport: bytes of authenticated devices in, bytes to them out, and bounds on both.

Identity is the public key that ZAP authenticated (``User-Id``), never the routing id; the gate gives every connection
a fresh one of those (:mod:`aggregator.gate.authentication`), so that none can be claimed, taken over or guessed.
Sending never blocks: what a slow device does not take waits in a bounded outbox, and a device whose outbox overflows
is forgotten, to connect again when it can.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import zmq

from aggregator.errors import ConfigError, PortInUse
from aggregator.gate.authentication import Domain
from protocol import limits

__all__ = ["Incoming", "Port", "make_context"]

Frames = Sequence[bytes | memoryview]

OUTBOX_MAX = 16
"""Messages that wait for one slow device, beyond those libzmq queues for it. Each holds up to one chunk, and a device
has :data:`protocol.limits.WINDOW_CHUNKS` requests open at most, or it is no device of ours."""
IDLE_S = 900.0
"""A connection that said nothing for this long is over: a device that trains pings far more often."""
RETRY_S = 0.02
"""How soon to try again to send to a slow device."""
_BATCH = 64
"""Messages taken from one port before the other ones get their turn."""
_FRAMES_KEPT = 3
"""Of a longer message the rest is thrown away as it is read: three are enough to refuse it."""

_OPTIONS = {
    zmq.ROUTER_MANDATORY: 1,  # without it libzmq drops silently what a device cannot take
    zmq.ROUTER_HANDOVER: 0,  # with it any device could take over another one's routing id
    zmq.SNDHWM: 8,  # messages of up to one chunk, for each connection
    zmq.RCVHWM: 8,
    zmq.SNDTIMEO: 0,
    zmq.LINGER: 0,
    zmq.HANDSHAKE_IVL: 5_000,
    zmq.BACKLOG: 4096,
    # A peer that reads nothing is never asked for a heartbeat, because the question waits behind what it does not read:
    # the kernel ends its connection (TCP_USER_TIMEOUT, RFC 5482), and what was queued for it is free again.
    zmq.TCP_MAXRT: 60_000,
    # Heartbeats are cleared per frame, not per byte: a chunk on a slow link has to fit into the timeout.
    zmq.HEARTBEAT_IVL: 20_000,
    zmq.HEARTBEAT_TIMEOUT: 60_000,
    zmq.HEARTBEAT_TTL: 60_000,
}
# libzmq takes port 99999 for port 34463.
_BINDABLE = re.compile(r"tcp://[^/]+:(\*|[0-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])\Z")
_ENROLMENT_MAX_BYTES = limits.HEADER_MAX_BYTES
_DATA_MAX_BYTES = limits.CHUNK_MAX_BYTES + limits.HEADER_MAX_BYTES


def make_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context for many devices, with one I/O thread, as the gate needs it.

    libzmq numbers connections without a routing id from ``rand()``, which it never seeds, and aborts the process if a
    device has claimed the next number. The gate leaves no connection without an id; should it ever fail to, a number
    from a seeded generator is hard to guess.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, 16_384)
    return context


@dataclass(frozen=True)
class Incoming:
    """One message of an authenticated device."""

    peer: bytes
    """Routing id, from the gate: where to send an answer, nothing else."""
    key: str
    """The authenticated public key, Z85."""
    address: str
    """The network address it came from."""
    frames: Frames
    """The message."""


@dataclass
class _Peer:
    heard_at: float
    outbox: deque[Frames] = field(default_factory=deque)


class Port:
    """One bound ROUTER socket with CURVE and ZAP.

    Args:
        context: From :func:`make_context`.
        endpoint: Where to bind, such as ``tcp://10.0.0.5:7700``; port ``0`` or ``*`` takes a free one.
        secret: The server's CURVE secret key, Z85.
        domain: Who may come in.
        forget: Told the routing id of each connection that is over.

    Attributes:
        endpoint: The bound endpoint, with its port number.

    Raises:
        PortInUse: Another program listens there.
        ConfigError: The endpoint cannot be bound at all.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        *,
        secret: bytes,
        domain: Domain,
        forget: Callable[[bytes], None],
    ) -> None:
        if not _BINDABLE.match(endpoint):
            raise ConfigError(f"cannot listen on {endpoint!r}: expected tcp://ADDRESS:PORT, with a port up to 65535")
        self._forget = forget
        self._peers: dict[bytes, _Peer] = {}
        self.socket = context.socket(zmq.ROUTER)
        for option, value in _OPTIONS.items():
            self.socket.setsockopt(option, value)
        bulk = domain is Domain.DATA
        self.socket.setsockopt(zmq.MAXMSGSIZE, _DATA_MAX_BYTES if bulk else _ENROLMENT_MAX_BYTES)
        self.socket.curve_server = True
        self.socket.curve_secretkey = secret
        self.socket.zap_domain = domain.encode()
        self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self._bind(endpoint)
        self.endpoint: str = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def backed_up(self) -> bool:
        """Whether something waits to be sent; call :meth:`flush` again after :data:`RETRY_S`."""
        return any(peer.outbox for peer in self._peers.values())

    def receive(self, now: float) -> Iterator[Incoming]:
        """The messages that wait, at most a batch of them."""
        for _ in range(_BATCH):
            try:
                routing_id, *frames = _next_message(self.socket)
            except zmq.Again:
                return
            message = _incoming(routing_id, frames)
            if message is not None:
                self._peers.setdefault(message.peer, _Peer(now)).heard_at = now
                yield message

    def send(self, peer: bytes, frames: Frames) -> None:
        """Sends a message now, or keeps it for later; forgets a device that is gone or far behind."""
        known = self._peers.get(peer)
        if known is None:
            return
        if known.outbox or not self._sent(peer, frames):
            known.outbox.append(frames)
        if len(known.outbox) > OUTBOX_MAX:
            self._drop(peer)

    def flush(self) -> None:
        """Tries again to send what waits."""
        for peer, known in list(self._peers.items()):
            while known.outbox and self._sent(peer, known.outbox[0]):
                if known.outbox:  # a lost device has none any more
                    known.outbox.popleft()

    def expire(self, now: float) -> None:
        """Forgets connections that have said nothing for a long time: libzmq never says that one closed."""
        for peer in [peer for peer, known in self._peers.items() if now - known.heard_at > IDLE_S]:
            self._drop(peer)

    def close(self) -> None:
        """Stops listening."""
        self.socket.close()

    def _bind(self, endpoint: str) -> None:
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.socket.close()
            if error.errno == zmq.EADDRINUSE:
                raise PortInUse(f"{endpoint} is in use by another program; stop it, or name another port") from error
            raise ConfigError(
                f"cannot listen on {endpoint!r}: {error.strerror}; expected tcp://ADDRESS:PORT"
            ) from error

    def _sent(self, peer: bytes, frames: Frames) -> bool:
        """Whether a message needs no further care: it went out, or its device is gone."""
        try:
            self.socket.send_multipart([peer, *frames], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._drop(peer)
        return True

    def _drop(self, peer: bytes) -> None:
        known = self._peers.pop(peer, None)
        if known is not None:
            known.outbox.clear()
            self._forget(peer)


def _next_message(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """Routing id and frames of the next message, of an endless one the first few; raises ``Again`` if none waits."""
    last = socket.recv(zmq.NOBLOCK, copy=False)
    kept = [last]
    while last.more:
        last = socket.recv(copy=False)
        if len(kept) <= _FRAMES_KEPT:
            kept.append(last)
    return kept


def _incoming(routing_id: zmq.Frame, frames: Sequence[zmq.Frame]) -> Incoming | None:
    """None for a message that no authenticated device can have sent."""
    if not frames:
        return None
    try:
        key, address = frames[0].get("User-Id"), frames[0].get("Peer-Address")
    except zmq.ZMQError:
        return None
    if not key:
        return None
    return Incoming(routing_id.bytes, str(key), str(address), [frame.buffer for frame in frames])
