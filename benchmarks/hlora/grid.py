"""Runs the cells of the comparison, and stores each as soon as it is finished."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from benchmarks.grid import CellFile, Conditions, Record, cell_of, one_thread, or_failure, run_cells
from benchmarks.hlora.settings import Cell, Preset, Settings
from benchmarks.hlora.workloads import WORKLOADS
from edge_client.trainers.resident_base import SharedBase

__all__ = ["conditions_of", "run_grid"]


@dataclass(frozen=True)
class _Work:
    """One cell, for a process that knows nothing yet."""

    cell: Cell
    preset: Preset
    source: str
    model: str


def conditions_of(settings: Settings, model: str) -> Conditions[Cell]:
    """What decides a cell's result beside its own fields, as a file holds it: with lists for tuples."""
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
    tasks = {task: json.loads(json.dumps({**shared, **asdict(WORKLOADS[task])})) for task in preset.tasks}
    return lambda cell: tasks.get(cell.task)


def run_grid(settings: Settings, cells: Sequence[Cell], model: str, stored: CellFile[Cell]) -> Iterator[Record]:
    """Runs cells.

    Args:
        settings: How.
        cells: Which, such as those that are :meth:`~CellFile.missing`.
        model: Hub id or folder of the base model.
        stored: Where what is finished goes.

    Yields:
        Each record once it is stored. A cell whose training diverged has a ``failure`` instead of scores.

    Raises:
        BenchmarkError: Data or model cannot be read, a process died, or a cell broke off.
    """
    conditions = conditions_of(settings, model)
    work = [_Work(cell, settings.preset, _source(settings, cell.task), model) for cell in cells]
    for record in run_cells(_run, work, settings.workers):
        stored.store({**record, "conditions": conditions(cell_of(record, Cell))})
        yield record


def _run(work: _Work) -> Record:
    from benchmarks.hlora.federate import run_cell
    from benchmarks.hlora.study import make_study

    study = make_study(work.cell, work.preset, work.source, work.model)
    with one_thread():
        return or_failure(work.cell, lambda: run_cell(work.cell, work.preset, study, _base(work.model)))


@lru_cache(maxsize=1)
def _base(model: str) -> SharedBase:
    """One base for all cells of a process."""
    from edge_client.trainers.resident_base import BaseSettings
    from protocol.manifest import Quantization

    return SharedBase(BaseSettings(model=model, quantization=Quantization.FP32, compute_dtype="fp32"))


def _source(settings: Settings, task: str) -> str:
    return WORKLOADS[task].hub if settings.data is None else str(settings.data / task)
