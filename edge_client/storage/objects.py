"""Objects fetched from the aggregator, named by their SHA-256: whole ones, and the part that has arrived so far."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["Objects"]


class Objects:
    """The folder that holds them.

    Args:
        folder: An existing folder that nothing else writes to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, digest: str, size: int, keep: Collection[str] | None) -> int:
        """Makes room for an object and returns how many of its bytes are here already.

        A part is trusted by its length alone: what a crash left out is found when the whole is verified.

        Args:
            digest: SHA-256 of the object, hex.
            size: Bytes of the object.
            keep: Digests of what must stay; all else is deleted, so that a run of many rounds fills no disk. None:
                everything.
        """
        for path in self._folder.iterdir():
            if keep is not None and path.stem not in keep:
                path.unlink()
        if self._path(digest).exists():
            return size
        part = self._part(digest)
        part.touch()
        if part.stat().st_size > size:
            os.truncate(part, 0)
        return part.stat().st_size

    def write(self, digest: str, offset: int, payload: bytes | memoryview) -> None:
        """Writes a piece."""
        with self._part(digest).open("r+b") as file:
            file.seek(offset)
            file.write(payload)

    def seal(self, digest: str) -> bool:
        """Verifies an object and gives it its final name; if the bytes are wrong, they are deleted."""
        path, part = self._path(digest), self._part(digest)
        held = path if path.exists() else part
        with held.open("rb") as file:
            ok = hashlib.file_digest(file, "sha256").hexdigest() == digest
        if not ok:
            held.unlink()
        elif held is part:
            part.replace(path)
        return ok

    def read(self, digest: str) -> bytes:
        """All bytes of a sealed object."""
        return self._path(digest).read_bytes()

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest}.object"

    def _part(self, digest: str) -> Path:
        return self._folder / f"{digest}.part"
