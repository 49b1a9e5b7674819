"""The command of every study: chooses learning rates, runs what is missing, and ends in tables, a file and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.conclusion import conclude
from benchmarks.data.tasks import TASKS, source_of
from benchmarks.grid import CellFile, GridSettings, Record, cell_of, run_cells, title
from benchmarks.models import model_or_minilm
from benchmarks.stages import Stages
from benchmarks.studies.design import Cell, Condition, Study
from benchmarks.studies.experiment import Work, run_work
from benchmarks.studies.plan import chosen_rates, diverged, study_cells, tuning_cells
from benchmarks.studies.plot import plot_study
from benchmarks.studies.report import rows, tables, unchecked
from benchmarks.vision.base import vision_base

__all__ = ["plain_condition", "run_study"]


def run_study(study: Study, settings: GridSettings) -> None:
    """Runs a study.

    Raises:
        BenchmarkError: Data or model cannot be read, a process died, or a cell broke off.
    """
    _Run(study, settings).run()


class _Run:
    """One call of a study's command."""

    def __init__(self, study: Study, settings: GridSettings) -> None:
        self._study, self._settings = study, settings
        self._preset, self._stages = study.presets[settings.preset_name], Stages()
        self._model, self._stored = self._base_model(), CellFile(settings.cells, Cell)
        self._left = settings.runs

    def run(self) -> None:
        """Chooses learning rates, runs what is missing, and reports what there is."""
        study, preset, settings = self._study, self._preset, self._settings
        seeds = tuple(range(settings.seed, settings.seed + preset.seeds))
        self._run_missing("choosing learning rates", list(tuning_cells(study, preset, settings.seed)))
        tried = self._stored.records(self._conditions)
        rates = chosen_rates(study, preset, tried, settings.seed)
        cells = list(study_cells(study, preset, rates, seeds))
        self._run_missing("the study", cells)
        wanted = set(cells)
        records = [r for r in self._stored.records(self._conditions) if cell_of(r, Cell) in wanted]
        print(f"\n{len(records)} of {len(cells)} runs\n\n{tables(study, preset, records)}\n")
        for task, arm, condition in diverged(study, preset, tried, settings.seed):
            print(f"{task}, {arm}: not run, since training diverged at every learning rate under {condition!r}\n")
        if settings.plot is not None:
            plot_study(study, preset, records, settings.plot)
            print(f"wrote {settings.plot}")
        packages = ("numpy", "torch", "transformers", "peft")
        got = {"claims_unchecked": unchecked(study, preset, records)} if preset.seeds > 1 else {}  # a pair needs two
        conclude(study.name, settings.flags(), seeds, got, rows(study, records), settings.out, packages=packages)

    def _base_model(self) -> str:
        settings = self._settings
        if settings.model is not None or not self._study.vision:
            return model_or_minilm(settings.model)
        folder = Path.cwd() if settings.cells is None else settings.cells.parent
        return vision_base(settings.data, folder, seed=settings.seed, say=self._stages.say)

    def _run_missing(self, what: str, cells: Sequence[Cell]) -> None:
        missing = self._stored.missing(cells, self._conditions)
        self._stages.say(f"{what}: {len(cells)} runs, {len(cells) - len(missing)} of them stored already")
        work = [self._work(cell) for cell in missing[: self._left]]
        with tqdm(total=len(work), unit="run", disable=None) as bar:
            for record in run_cells(run_work, work, self._settings.workers):
                cell = cell_of(record, Cell)
                self._stored.store({**record, "conditions": self._conditions(cell)})
                bar.update()
                bar.set_postfix_str(title(cell))
                if bar.disable:  # nobody watches a terminal
                    self._stages.say(f"{title(cell)}: {record.get('failure', 'done')}")
        if self._left is not None:
            self._left -= len(work)

    def _work(self, cell: Cell) -> Work:
        return Work(
            cell=cell,
            arm=self._study.arms[cell.arm],
            condition=self._study.conditions[cell.condition],
            preset=self._preset,
            source=source_of(cell.task, self._settings.data),
            model=self._model,
        )

    def _conditions(self, cell: Cell) -> Record | None:
        """What decides a cell's result beside its own fields, as a file holds it."""
        study, preset = self._study, self._preset
        if cell.arm not in study.arms or cell.condition not in study.conditions or cell.task not in TASKS:
            return None
        arm = asdict(study.arms[cell.arm])
        del arm["learning_rates"]  # what else was tried
        found = {
            "study": study.name,
            "model": Path(self._model).name,
            "rounds": preset.rounds,
            "batch_size": preset.batch_size,
            "train_rows": preset.train_rows,
            "validation_rows": preset.validation_rows,
            "test_rows": preset.test_rows,
            "score_every": preset.score_every,
            "task": asdict(TASKS[cell.task]),
            "arm": arm,
            "condition": plain_condition(study.conditions[cell.condition]),
        }
        return dict(json.loads(json.dumps(found)))


def plain_condition(condition: Condition) -> Record:
    """A condition as JSON has it: without what is infinite, and without devices of which nothing is said."""
    plain = asdict(condition)
    del plain["own_rates"]  # which decides what is run, and not what comes of it
    if condition.fleet is not None:
        plain["fleet"] = {name: value for name, value in asdict(condition.fleet).items() if value != math.inf}
    return {name: value for name, value in plain.items() if value or name not in ("fleet", "server")}
