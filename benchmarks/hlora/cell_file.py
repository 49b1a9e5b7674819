"""The file of finished cells: what is in it need not be run again, by this process or a later one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.hlora.settings import Cell, Settings
from benchmarks.hlora.workloads import WORKLOADS

__all__ = ["CellFile", "Record", "conditions_of", "title"]

Record = Mapping[str, Any]
"""What came of a cell, as plain JSON values: its fields, and what :func:`benchmarks.hlora.federate.run_cell` adds."""


class CellFile:
    """Finished cells, a JSON object a line, each written before the next is run.

    A record names the conditions it was made under; records of other conditions are left alone and not read.

    Args:
        path: The file; made with the first record. None: what is stored is kept in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._records: list[Record] = [] if path is None or not path.exists() else list(_lines(path))

    def records(self, conditions: Mapping[str, Record]) -> list[Record]:
        """All that were made under these conditions, by task, one a cell."""
        fitting = (record for record in self._records if record["conditions"] == conditions.get(str(record["task"])))
        return list({_cell_of(record): record for record in fitting}.values())

    def missing(self, cells: Sequence[Cell], conditions: Mapping[str, Record]) -> list[Cell]:
        """Those of the cells that are not stored, in their order."""
        stored = set(map(_cell_of, self.records(conditions)))
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


def conditions_of(settings: Settings, model: str) -> dict[str, Record]:
    """What decides a cell's result beside its own fields, by task, as a file holds it: with lists for tuples."""
    preset = settings.preset
    shared = {
        "model": Path(model).name,
        "clients": preset.clients,
        "rounds": preset.rounds,
        "local_steps": preset.local_steps,
        "train_rows": preset.train_rows,
        "test_rows": preset.test_rows,
        "score_every": preset.score_every,
        "exact_slots": preset.exact_slots,
    }
    return {task: json.loads(json.dumps({**shared, **asdict(WORKLOADS[task])})) for task in preset.tasks}


def title(record: Record) -> str:
    """Names a record's cell to people."""
    return ", ".join(f"{name} {record[name]}" for name in Cell.__dataclass_fields__)


def _lines(path: Path) -> Iterator[Record]:
    """All whole records: a process that was killed while it wrote leaves half a line."""
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        yield record


def _cell_of(record: Record) -> Cell:
    fields = {name: record[name] for name in Cell.__dataclass_fields__}
    return Cell(**fields)
