"""Finished cells: stored at once, found again under the same conditions, and none lost to a process that was killed."""

import json
from dataclasses import asdict, dataclass

import pytest

from benchmarks.grid import CellFile, cell_of, title


@dataclass(frozen=True, kw_only=True)
class Cell:
    arm: str
    alpha: float | None = 1.0


def conditions(cell):
    return {"rounds": 2}


def record(arm, **fields):
    return {**asdict(Cell(arm=arm, **fields)), "score": 0.5, "conditions": {"rounds": 2}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cells.jsonl"


def test_stored_cells_are_not_missing_unless_they_were_run_under_other_conditions(path):
    CellFile(path, Cell).store(record("delta"))
    again, cells = CellFile(path, Cell), [Cell(arm="delta"), Cell(arm="hlora"), Cell(arm="delta", alpha=None)]
    assert again.missing(cells, conditions) == cells[1:]
    assert again.missing(cells, lambda cell: {"rounds": 3}) == cells
    assert again.missing(cells, lambda cell: None) == cells


def test_half_a_line_costs_its_cell_and_no_other(path):
    CellFile(path, Cell).store(record("delta"))
    path.write_bytes(path.read_bytes() + json.dumps(record("hlora")).encode()[:-9])
    CellFile(path, Cell).store(record("raflora"))
    assert [found["arm"] for found in CellFile(path, Cell).records(conditions)] == ["delta", "raflora"]


def test_a_cell_that_was_run_twice_counts_once_as_it_was_run_last(path):
    for score in (0.1, 0.2):
        CellFile(path, Cell).store({**record("delta"), "score": score})
    assert [found["score"] for found in CellFile(path, Cell).records(conditions)] == [0.2]


def test_records_of_another_experiment_are_left_alone(path):
    path.write_text(json.dumps({"method": "lora", "conditions": {"rounds": 2}}) + "\n")
    stored = CellFile(path, Cell)
    stored.store(record("delta", alpha=None))
    assert [cell_of(found, Cell) for found in stored.records(conditions)] == [Cell(arm="delta", alpha=None)]
    assert len(path.read_text().splitlines()) == 2


def test_without_a_file_cells_are_kept_in_memory():
    stored = CellFile(None, Cell)
    stored.store(record("delta"))
    assert stored.missing([Cell(arm="delta")], conditions) == []


def test_a_cell_is_named_by_its_fields():
    assert title(Cell(arm="delta")) == "arm delta, alpha 1.0"
