"""A device down to its socket: a DEALER with CURVE, whose handshake can be watched."""

from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

PATIENCE_MS = 10_000
"""Bound on waiting for an event that must come."""


class Device:
    """A DEALER with CURVE, as a device uses one."""

    def __init__(
        self, context, endpoint: str, server_key: bytes, *, routing_id: bytes | None = None, curve: bool = True
    ) -> None:
        self.public, secret = zmq.curve_keypair()
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        if curve:
            self.socket.curve_publickey, self.socket.curve_secretkey = self.public, secret
            self.socket.curve_serverkey = server_key
        if routing_id is not None:
            self.socket.routing_id = routing_id
        self.endpoint = endpoint
        self.monitor = self.socket.get_monitor_socket()

    @property
    def key(self) -> str:
        return self.public.decode()

    def connect(self) -> None:
        self.socket.connect(self.endpoint)

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self) -> list[bytes]:
        assert self.socket.poll(PATIENCE_MS), "no answer"
        return self.socket.recv_multipart()

    def event(self, idle: Callable[[], None]) -> zmq.Event:
        """How the handshake ends; ``idle`` is called while waiting."""
        for _ in range(PATIENCE_MS // 10):
            idle()
            if self.monitor.poll(10):
                found = zmq.Event(recv_monitor_message(self.monitor)["event"])
                if found in _ENDS:
                    return found
        raise AssertionError("the handshake did not end")

    def close(self) -> None:
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close()
            self.socket.close()


_ENDS = {
    zmq.Event.HANDSHAKE_SUCCEEDED,
    zmq.Event.HANDSHAKE_FAILED_AUTH,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL,
    zmq.Event.DISCONNECTED,
}
