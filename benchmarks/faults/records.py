"""A device's own account of what it did and heard, line by line, which its death cannot take back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Record", "RecordReader", "Recorder", "read_records"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One thing that happened in a device's process."""

    at: float
    """When: the machine's monotonic clock, seconds, the same for all processes."""
    kind: str
    """What."""
    fields: Mapping[str, Any]
    """The particulars."""


class Recorder:
    """Appends to a record that outlives its process.

    A line is one ``write``: when that returns the kernel has it, and SIGKILL cannot take it back.

    Args:
        path: The file; several lives of a device write to the same.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def tell(self, kind: str, *, sync: bool = False, **fields: object) -> None:
        """Adds a line; with ``sync`` it is on the disk when this returns."""
        line = json.dumps({"at": time.monotonic(), "kind": kind, "fields": fields})
        os.write(self._fd, line.encode() + b"\n")
        if sync:
            os.fsync(self._fd)


class RecordReader:
    """Follows a record while it is written.

    Args:
        path: The file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0

    def new(self) -> list[Record]:
        """What was told since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return [Record(**json.loads(line)) for line in whole.splitlines()]


def read_records(path: Path) -> list[Record]:
    """All that a device told, in order."""
    return RecordReader(path).new()
