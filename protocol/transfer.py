"""Moving large objects in pieces: who may send which byte, and where to go on after a break.

Credit is an absolute offset, as QUIC's ``MAX_DATA`` (RFC 9000, section 4.1): losing, repeating or reordering a credit
is harmless. A receiver only ever holds a contiguous prefix, so resuming is one number.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol import limits
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError

__all__ = ["Download", "Piece", "Receiver", "Sender"]


@dataclass(frozen=True)
class Piece:
    """A range of bytes to send or to ask for."""

    offset: int
    """First byte."""
    length: int
    """Number of bytes, at least 1."""


class Sender:
    """The uploading side.

    Args:
        size: Bytes of the object.
        chunk_bytes: Largest piece to send; the attribute may be changed between two pieces.

    Raises:
        LocalProtocolError: A bound is not positive.
    """

    def __init__(self, size: int, chunk_bytes: int = limits.CHUNK_MAX_BYTES) -> None:
        if size < 1 or chunk_bytes < 1:
            raise LocalProtocolError("an upload needs a size and a chunk size of at least 1 byte")
        self._size, self.chunk_bytes = size, chunk_bytes
        self._sent = self._upto = self.acknowledged = 0

    def resume(self, have: int, upto: int) -> None:
        """Starts from what the receiver says it holds: the answer to an ``OFFER``."""
        self._check(have, upto)
        self._sent = self.acknowledged = have
        self._upto = upto

    def credit(self, have: int, upto: int) -> None:
        """Takes a credit that answers a chunk; old ones change nothing."""
        self._check(have, upto)
        self.acknowledged = max(self.acknowledged, have)
        self._sent = max(self._sent, have)  # pieces from before a resume arrived after all
        self._upto = max(self._upto, upto)

    def next_piece(self) -> Piece | None:
        """The next piece that the credit allows, or None. Each piece is given out once per :meth:`resume`.

        Credit comes in steps of the pieces that earned it: while more of it is on its way, it is saved up for a whole
        piece, or pieces could never grow.
        """
        end = min(self._sent + self.chunk_bytes, self._upto)
        whole = end == min(self._sent + self.chunk_bytes, self._size)
        if end <= self._sent or not (whole or self._sent == self.acknowledged):
            return None
        piece = Piece(self._sent, end - self._sent)
        self._sent = end
        return piece

    def _check(self, have: int, upto: int) -> None:
        if not have <= upto <= self._size:
            raise RemoteProtocolError(f"credit {have}..{upto} for an upload of {self._size} bytes")


class Receiver:
    """The receiving side of an upload: accepts bytes in order and within the credit it gave.

    Args:
        size: Bytes offered.
        have: Bytes already held, from the journal.
        window_bytes: Credit to keep open.
    """

    def __init__(
        self, size: int, have: int = 0, window_bytes: int = limits.WINDOW_CHUNKS * limits.CHUNK_MAX_BYTES
    ) -> None:
        self.size, self.have, self._window_bytes = size, have, window_bytes

    @property
    def upto(self) -> int:
        """The credit to announce."""
        return min(self.size, self.have + self._window_bytes)

    @property
    def complete(self) -> bool:
        """Whether all bytes are here."""
        return self.have == self.size

    def accept(self, offset: int, length: int) -> bool:
        """Whether to write this piece; if so, it counts as held.

        Returns:
            False for a piece already held, or one behind a gap: drop it and announce the credit again.

        Raises:
            RemoteProtocolError: The piece reaches past the credit, or is empty.
        """
        if length < 1 or offset + length > self.upto:
            raise RemoteProtocolError(
                f"bytes {offset}..{offset + length} are beyond the credit of {self.upto}", NackCode.ILLEGAL
            )
        if offset != self.have:
            return False
        self.have += length
        return True


class Download:
    """The fetching side: keeps a window of requests in flight, and writes pieces in whatever order they come.

    Args:
        size: Bytes of the object.
        have: Contiguous bytes already on disk.
        chunk_bytes: Largest piece to ask for; the attribute may be changed between two requests.
        window: Requests in flight.
    """

    def __init__(
        self,
        size: int,
        have: int = 0,
        chunk_bytes: int = limits.CHUNK_MAX_BYTES,
        window: int = limits.WINDOW_CHUNKS,
    ) -> None:
        self._size, self.chunk_bytes, self._window = size, chunk_bytes, window
        self._asked = have
        self._in_flight: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self.have = have

    @property
    def complete(self) -> bool:
        """Whether all bytes are here."""
        return self.have == self._size

    def next_request(self) -> Piece | None:
        """The next piece to ask for, or None while the window is full or all is asked for."""
        length = min(self.chunk_bytes, self._size - self._asked)
        if length < 1 or len(self._in_flight) >= self._window:
            return None
        piece = Piece(self._asked, length)
        self._in_flight[piece.offset] = length
        self._asked += length
        return piece

    def accept(self, offset: int, length: int) -> bool:
        """Whether to write this piece; False for one that was not asked for or is already here.

        Raises:
            RemoteProtocolError: The piece is not as long as the one asked for.
        """
        wanted = self._in_flight.pop(offset, None)
        if wanted is None:
            return False
        if wanted != length:
            raise RemoteProtocolError(f"asked for {wanted} bytes at {offset}, got {length}")
        self._done[offset] = length
        while self.have in self._done:
            self.have += self._done.pop(self.have)
        return True
