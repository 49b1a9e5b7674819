"""Who may shake hands: the ZAP handler (ZeroMQ RFC 27) that libzmq asks about every new connection.

It is served by the daemon's own loop rather than by a thread, so it cannot die alone, and it answers every request
whatever happens: pyzmq's authenticator thread ends at the first exception of its callback and then lets nobody in.
Should nobody serve it, libzmq refuses all connections, because every port sets ``ZAP_ENFORCE_DOMAIN``; without that
option it would let everybody in.

ZAP is asked at the handshake only. A revocation takes effect on live connections because the hub asks again with
every message.

The answer also names the connection: libzmq reads an ``Identity`` out of it as it reads a peer's own, and the later one
wins. So no device chooses its routing id, and libzmq never numbers a connection itself: a device that guessed the next
number would otherwise abort the process (``zmq_assert`` in libzmq's ``router.cpp``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from enum import StrEnum

import zmq
from zmq.utils import z85

from aggregator.gate.rate import RateLimit

__all__ = ["Domain", "Gate"]

_ENDPOINT = "inproc://zeromq.zap.01"
_HANDSHAKES = 60
"""Per key and minute. A device that reconnects with back-off needs few, and each can hold what is queued for it."""
_log = logging.getLogger(__name__)


class Domain(StrEnum):
    """The ZAP domain of each port."""

    DATA = "data"
    """Enrolled keys only."""
    ENROLMENT = "enrolment"
    """Any key: this is where a key becomes an enrolled one."""


class Gate:
    """Answers libzmq's questions for one context.

    Args:
        context: The context whose ports are guarded, with one I/O thread. Make the gate before the ports.
        admits: Whether a key (Z85) may use the data port. An exception counts as no.
        clock: Monotonic time, seconds.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], admits: Callable[[str], bool], clock: Callable[[], float]
    ) -> None:
        self._admits, self._clock = admits, clock
        self._limit = RateLimit(_HANDSHAKES, per_s=60.0)
        self._io_thread = _IoThread(context)
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(_ENDPOINT)

    def answer(self) -> None:
        """Answers all questions that wait."""
        questions = []
        while self.socket.poll(0):
            questions.append(self.socket.recv_multipart())
        if questions:
            self._io_thread.wait()  # else a peer's own identity may be read after the answer, and win
        for asker, _, *request in questions:
            self.socket.send_multipart([asker, b"", *self._verdict(request)])

    def close(self) -> None:
        """Stops answering: from now on nobody gets in."""
        self.socket.close()
        self._io_thread.close()

    def _verdict(self, request: Sequence[bytes]) -> list[bytes]:
        """The reply: version, request id, status code, status text, user id, metadata."""
        request_id = request[1] if len(request) > 1 else b""
        try:
            code, user = self._decide(request)
        except Exception:
            _log.exception("a handshake was refused because its check failed")
            code, user = b"400", b""
        if code != b"200":
            return [b"1.0", request_id, code, b"refused", user, b""]
        return [b"1.0", request_id, code, b"OK", user, _identity(b"\1" + os.urandom(15))]

    def _decide(self, request: Sequence[bytes]) -> tuple[bytes, bytes]:
        _, _, domain, _, _, mechanism, *credentials = request
        if mechanism != b"CURVE" or len(credentials) != 1:
            return b"400", b""
        key = z85.encode(credentials[0])
        if not self._limit.allows(key.decode(), self._clock()):
            return b"300", b""  # a temporary failure: libzmq closes without telling the client that it is refused
        if domain == Domain.ENROLMENT.encode() or (domain == Domain.DATA.encode() and self._admits(key.decode())):
            return b"200", key
        return b"400", b""


class _IoThread:
    """A way to wait until a context's only I/O thread has done all that it was doing.

    It does one thing at a time, and a message between these two sockets passes through it.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        if context.get(zmq.IO_THREADS) != 1:
            raise ValueError("the gate needs a context with one I/O thread: with several, a device may forge its id")
        self._near, self._far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
        name = f"ipc://@{os.urandom(16).hex()}"  # an abstract socket of Linux: no file, and it takes one connection
        self._far.bind(name)
        self._near.connect(name)

    def wait(self) -> None:
        """Returns once the thread has finished what it does at this moment; microseconds, unless it is busy."""
        self._near.send(b"")
        self._far.recv()

    def close(self) -> None:
        self._near.close(linger=0)
        self._far.close(linger=0)


def _identity(routing_id: bytes) -> bytes:
    """Metadata of a ZAP reply that names the connection (encoded as in ZMTP, ZeroMQ RFC 23)."""
    return b"\x08Identity" + len(routing_id).to_bytes(4, "big") + routing_id
