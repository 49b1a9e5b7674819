"""Where simulated runs live in tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY_DISK = Path("/dev/shm")
"""Where it exists, runs live there: they fsync at every step, and durability is tested elsewhere."""


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory where there is such a disk."""
    with tempfile.TemporaryDirectory(dir=_MEMORY_DISK if _MEMORY_DISK.is_dir() else tmp_path) as folder:
        yield Path(folder)
