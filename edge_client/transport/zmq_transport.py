"""Frames over ZeroMQ: a DEALER socket with CURVE that dials out, watched by a socket monitor.

libzmq's own reconnection is off (``RECONNECT_IVL=-1``): it would hide a broken link, keep the routing id, and give
all devices the same jitter. Each try is a new socket with a fresh random routing id (the *Paranoid Pirate* pattern,
ZeroMQ guide, chapter 4).
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

import zmq
from zmq.utils.monitor import recv_monitor_message

from edge_client.storage.keys import KeyPair
from edge_client.transport.base import AuthenticationFailed, Connected, Disconnected, LinkEvent, Received
from protocol import limits
from protocol.header import Frames

__all__ = ["ZmqNetwork", "ZmqTransport"]

_LINGER_MS = 500
"""How long a goodbye may take to leave after the socket is closed."""
_HANDSHAKE_MS = 10_000

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
_MEANING: dict[int, LinkEvent] = {
    zmq.EVENT_HANDSHAKE_SUCCEEDED: Connected(),
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: AuthenticationFailed(),
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: Disconnected("the handshake failed: is the server key of the ticket right?"),
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: Disconnected("the connection broke during the handshake"),
    zmq.EVENT_DISCONNECTED: Disconnected("the connection broke"),
    zmq.EVENT_CLOSED: Disconnected("nobody answers at the aggregator's address"),
}


class ZmqNetwork:
    """Opens connections to aggregators; one per client, closed at its end."""

    def __init__(self) -> None:
        self._context = zmq.Context()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self, endpoint: str, server_key: str, key: KeyPair) -> ZmqTransport:
        """Dials; whether that succeeds is the transport's first event.

        Args:
            endpoint: Such as ``tcp://10.0.0.5:7700``.
            server_key: The aggregator's CURVE public key, Z85.
            key: This device's key pair.

        Raises:
            zmq.ZMQError: The endpoint is not one.
        """
        return ZmqTransport(self._context, endpoint, server_key, key)

    def close(self) -> None:
        """Waits for goodbyes to leave, half a second at most."""
        self._context.term()


class ZmqTransport:
    """Implements :class:`edge_client.transport.base.Transport`; made by :class:`ZmqNetwork`."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: str, key: KeyPair) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(_EVENTS)
        try:
            self._configure(server_key, key)
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._over = False
        self._bytes_sent = self._bytes_received = 0

    def _configure(self, server_key: str, key: KeyPair) -> None:
        socket = self._socket
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = (
            part.encode() for part in (server_key, key.public, key.secret)
        )
        socket.routing_id = b"\1" + os.urandom(15)  # a first byte of 0 is libzmq's own
        socket.immediate = 1
        socket.reconnect_ivl = -1
        socket.handshake_ivl = _HANDSHAKE_MS
        socket.connect_timeout = _HANDSHAKE_MS
        socket.linger = _LINGER_MS
        socket.sndhwm = 0  # what is queued is bounded by the aggregator's credit
        socket.rcvhwm = 64
        socket.maxmsgsize = limits.CHUNK_MAX_BYTES + limits.HEADER_MAX_BYTES

    @property
    def bytes_sent(self) -> int:
        """Bytes of the frames the socket took; ZMTP and CURVE add about 60 per message."""
        return self._bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes of the frames taken from the socket."""
        return self._bytes_received

    def send(self, frames: Frames) -> None:
        """Queues one message."""
        if self._over:
            return
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:  # the link broke, which the monitor is about to say: the message is lost either way
            return
        self._bytes_sent += sum(len(frame) for frame in frames)

    def recv(self, timeout_s: float) -> LinkEvent | None:
        """The next event; what has arrived comes before the news that the link broke."""
        if self._over:
            return None
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._socket in ready:
            frames = [frame.buffer for frame in self._socket.recv_multipart(zmq.NOBLOCK, copy=False)]
            self._bytes_received += sum(len(frame) for frame in frames)
            return Received(frames)
        if self._monitor in ready:
            event = _MEANING.get(recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"])
            self._over = isinstance(event, AuthenticationFailed | Disconnected)
            return event
        return None

    def close(self) -> None:
        """Closes the socket; a goodbye has half a second to leave."""
        if not self._socket.closed:
            self._socket.disable_monitor()
            self._monitor.close()
            self._socket.close()
