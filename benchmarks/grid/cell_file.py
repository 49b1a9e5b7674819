"""The file of finished cells: what is in it need not be run again, by this process or a later one.

A cell is a frozen dataclass whose fields are plain JSON values: one run of an experiment, named by what sets it apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

__all__ = ["CellFile", "Conditions", "Record", "cell_of", "title"]

CellT = TypeVar("CellT")

Record = Mapping[str, Any]
"""What came of a cell, as plain JSON values: the cell's own fields first."""
Conditions = Callable[[CellT], Record | None]
"""What a cell's result depends on beside its own fields, as a file holds it; None: the cell is of another grid."""


class CellFile(Generic[CellT]):
    """Finished cells, a JSON object a line, each written before the next is run.

    A record names the conditions it was made under; records of other conditions are left alone and not read.

    Args:
        path: The file; made with the first record. None: what is stored is kept in memory.
        kind: The dataclass of the cells.
    """

    def __init__(self, path: Path | None, kind: type[CellT]) -> None:
        self._path, self._kind = path, kind
        self._names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # any dataclass
        self._records: list[Record] = [] if path is None or not path.exists() else list(_lines(path))

    def records(self, conditions: Conditions[CellT]) -> list[Record]:
        """All that were made under these conditions, one a cell."""
        found = {cell_of(record, self._kind): record for record in self._records if self._is_cell(record)}
        return [record for cell, record in found.items() if record["conditions"] == conditions(cell)]

    def missing(self, cells: Sequence[CellT], conditions: Conditions[CellT]) -> list[CellT]:
        """Those of the cells that are not stored, in their order."""
        stored = {cell_of(record, self._kind) for record in self.records(conditions)}
        return [cell for cell in cells if cell not in stored]

    def store(self, record: Record) -> None:
        """Adds a record; who is killed afterwards has not lost it."""
        self._records.append(record)
        if self._path is None:
            return
        with self._path.open("ab") as file:
            if file.tell() and not self._path.read_bytes().endswith(b"\n"):
                file.write(b"\n")  # what a killed process left of its last line
            file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _is_cell(self, record: Record) -> bool:
        return set(self._names) <= set(record)


def cell_of(record: Record, kind: type[CellT]) -> CellT:
    """The cell that a record is of."""
    return kind(**{field.name: record[field.name] for field in fields(kind)})  # type: ignore[arg-type]  # as above


def title(cell: object) -> str:
    """Names a cell to people."""
    return ", ".join(f"{name} {value}" for name, value in asdict(cell).items())  # type: ignore[call-overload]


def _lines(path: Path) -> Iterator[Record]:
    """All whole records: a process that was killed while it wrote leaves half a line."""
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        yield record
