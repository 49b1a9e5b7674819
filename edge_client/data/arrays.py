"""Rows in NumPy arrays, a column each, as an ``.npz`` file holds them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ArrayRows", "read_npz"]


class ArrayRows:
    """Rows over arrays; an item of a row is a view, not a copy.

    Args:
        columns: Arrays of one length each, by column.

    Raises:
        DataError: Their lengths differ, or there is none.

    Example:
        >>> rows = ArrayRows({"image": np.zeros((2, 8, 8, 3), np.uint8), "label": np.array([0, 1])})
        >>> len(rows), rows[1]["image"].shape, int(rows[1]["label"])
        (2, (8, 8, 3), 1)
    """

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        lengths = {name: len(column) if column.ndim else None for name, column in columns.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            raise DataError(f"expected arrays of one length, an array for each column, got lengths {lengths}")
        self._columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return {name: column[index] for name, column in self._columns.items()}


def read_npz(path: Path) -> ArrayRows:
    """Reads all arrays of a file.

    Raises:
        DataError: It cannot be read, holds Python objects (which are code when read), or no columns of one length.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:  # TypeError: one array, an .npy
        raise DataError(f"{path}: not a readable .npz file of plain arrays ({error})") from error
    try:
        return ArrayRows(columns)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
