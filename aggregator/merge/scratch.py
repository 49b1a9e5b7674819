"""Room for large arrays: in memory up to a bound, in files without a name above it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RESIDENT_BYTES", "Scratch"]

RESIDENT_BYTES = 32 << 20
"""Arrays up to this size stay in memory."""


class Scratch:
    """Makes arrays.

    A mapped file has no name, so whatever ends the process frees it; its pages are the kernel's to write out, where
    anonymous memory would be the machine's to run out of.

    Args:
        folder: Where the files lie; None: everything is in memory.
        resident_bytes: Arrays up to this size are in memory anyway.
    """

    def __init__(self, folder: Path | None = None, resident_bytes: int = RESIDENT_BYTES) -> None:
        self._folder, self._resident = folder, resident_bytes

    def empty(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """A float64 array of this shape whose values are arbitrary.

        Raises:
            OSError: The disk is full. The space is taken at once: a page without room would end the process.
        """
        size = 8 * math.prod(shape)
        if self._folder is None or size <= self._resident:
            return np.empty(shape)
        with tempfile.TemporaryFile(dir=self._folder, prefix="merge-") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            mapped: NDArray[np.float64] = np.memmap(file, np.float64, "r+", shape=tuple(shape))
        return mapped.view(np.ndarray)
