"""Who may shake hands: the ZAP handler (ZeroMQ RFC 27) that libzmq asks about every new connection.

It is served by the daemon's own loop rather than by a thread, so it cannot die alone, and it answers every request
whatever happens: pyzmq's authenticator thread ends at the first exception of its callback and then lets nobody in.
Should nobody serve it, libzmq refuses all connections, because every port sets ``ZAP_ENFORCE_DOMAIN``; without that
option it would let everybody in.

ZAP is asked at the handshake only. A revocation takes effect on live connections because the hub asks again with
every message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import StrEnum

import zmq
from zmq.utils import z85

from aggregator.gate.rate import RateLimit

__all__ = ["Domain", "Gate"]

_ENDPOINT = "inproc://zeromq.zap.01"
_HANDSHAKES = 120
"""Per key and minute. A device that reconnects with back-off needs few; guessing routing ids needs very many."""
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
        context: The context whose ports are guarded. Make the gate before the ports.
        admits: Whether a key (Z85) may use the data port. An exception counts as no.
        clock: Monotonic time, seconds.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], admits: Callable[[str], bool], clock: Callable[[], float]
    ) -> None:
        self._admits, self._clock = admits, clock
        self._limit = RateLimit(_HANDSHAKES, per_s=60.0)
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(_ENDPOINT)

    def answer(self) -> None:
        """Answers all questions that wait."""
        while self.socket.poll(0):
            request = self.socket.recv_multipart()
            self.socket.send_multipart(self._verdict(request))

    def close(self) -> None:
        """Stops answering: from now on nobody gets in."""
        self.socket.close()

    def _verdict(self, request: Sequence[bytes]) -> list[bytes]:
        """The reply: version, request id, status code, status text, user id, metadata."""
        request_id = request[1] if len(request) > 1 else b""
        try:
            code, user = self._decide(request)
        except Exception:
            _log.exception("a handshake was refused because its check failed")
            code, user = b"400", b""
        return [b"1.0", request_id, code, b"OK" if code == b"200" else b"refused", user, b""]

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
