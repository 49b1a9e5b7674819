"""Making files and folders durable: what was written, renamed or made is on the disk on return."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["sync_file", "sync_folder"]


def sync_file(path: Path) -> None:
    """Flushes a file that somebody wrote.

    Raises:
        OSError: It may not be on the disk, and trying again cannot tell (:mod:`aggregator.store.objects` says why).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Flushes a folder: what was made, renamed or removed in it stays so.

    Raises:
        OSError: As :func:`sync_file`.
    """
    sync_file(path)
