"""Uploads in progress: part files, credit, and who may send now."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.store.journal import Journal, UploadRow
from aggregator.store.objects import ObjectStore, Partial
from protocol import limits
from protocol.transfer import Receiver

__all__ = ["Uploads"]

JOURNAL_EVERY_BYTES = 8 * limits.CHUNK_MAX_BYTES
"""Bytes after which the prefix held is made durable: what a crash can cost an upload at most."""
IDLE_S = 90.0
"""Seconds without a byte after which an upload's place goes to the next; its prefix is kept."""


@dataclass
class _Live:
    row: UploadRow
    partial: Partial
    receiver: Receiver
    journalled: int
    heard: float
    admitted: bool


class Uploads:
    """The uploads that are open, of which a bounded number hold credit; the others wait in order of arrival.

    Args:
        objects: Where part files lie.
        journal: Where prefixes are remembered.
        places: Uploads that may hold credit at once; bounds memory and disk seeks.
    """

    def __init__(self, objects: ObjectStore, journal: Journal, places: int = 16) -> None:
        self._objects, self._journal, self._places = objects, journal, places
        self._live: dict[str, _Live] = {}
        self._granted: list[str] = []

    def open(self, row: UploadRow, now: float) -> tuple[int, int]:
        """Starts or resumes an upload.

        Returns:
            ``(have, upto)``: contiguous bytes held, and the credit; equal while it is queued.

        Raises:
            StoreFull: There is no room for it.
        """
        live = self._live.get(row.id)
        if live is None:
            partial = self._objects.partial(row.id, row.size)
            receiver = Receiver(row.size, row.have)
            live = _Live(row, partial, receiver, row.have, now, admitted=False)
            self._live[row.id] = live
        live.heard = now
        self._admit(now)
        if row.id in self._granted:
            self._granted.remove(row.id)
        return self.credit(row.id)

    def owner(self, upload: str) -> str | None:
        """The client key of an open upload."""
        live = self._live.get(upload)
        return None if live is None else live.row.client

    def held(self, upload: str) -> int | None:
        """Contiguous bytes of an open upload."""
        live = self._live.get(upload)
        return None if live is None else live.receiver.have

    def credit(self, upload: str) -> tuple[int, int]:
        """``(have, upto)`` of an open upload."""
        live = self._live[upload]
        return live.receiver.have, live.receiver.upto if live.admitted else live.receiver.have

    def write(self, upload: str, offset: int, payload: bytes | memoryview, now: float) -> bool:
        """Takes one piece.

        Returns:
            Whether the upload is complete now; its part file is then closed and ready for checking.

        Raises:
            RemoteProtocolError: The piece is beyond the credit.
        """
        live = self._live[upload]
        live.heard = now
        if not live.receiver.complete and live.receiver.accept(offset, len(payload)):
            live.partial.write(offset, payload)
            self._remember(live)
            if live.receiver.complete:
                self.release(upload, now)
                return True
        return False

    def release(self, upload: str, now: float) -> None:
        """Closes an upload's part file and gives its place to the next."""
        live = self._live.pop(upload, None)
        if live is not None:
            live.partial.close()
            self._admit(now)

    def granted(self, now: float) -> list[str]:
        """Takes places from uploads that went quiet; returns the queued ones that got a place since the last call."""
        for live in self._live.values():
            if live.admitted and now - live.heard > IDLE_S:
                live.admitted = False
        self._admit(now)
        granted = [upload for upload in self._granted if upload in self._live]
        self._granted.clear()
        return granted

    def _admit(self, now: float) -> None:
        """Gives free places in order of arrival, to uploads heard of lately."""
        free = self._places - sum(live.admitted for live in self._live.values())
        for live in self._live.values():
            if free > 0 and not live.admitted and now - live.heard <= IDLE_S:
                live.admitted = True
                self._granted.append(live.row.id)
                free -= 1

    def _remember(self, live: _Live) -> None:
        if live.receiver.have - live.journalled >= JOURNAL_EVERY_BYTES:
            live.partial.sync()
            self._journal.upload_prefix(live.row.id, live.receiver.have)
            live.journalled = live.receiver.have
