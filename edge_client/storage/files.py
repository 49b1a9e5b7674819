"""Writing files so that a power cut leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["sync_folder", "write_durably"]


def write_durably(path: Path, data: bytes | Iterable[bytes | memoryview], *, mode: int = 0o644) -> None:
    """Writes a file: temporary name, fsync, rename, fsync of the folder.

    Args:
        path: Where it shall be; replaced as a whole if it exists.
        data: Its content, or the parts of it.
        mode: Permission bits, set before the first byte is written.

    Reference: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, section 2 (why each step is needed).
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        for part in [data] if isinstance(data, bytes) else data:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames and removals inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
