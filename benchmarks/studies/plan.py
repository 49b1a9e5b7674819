"""Which cells a study comes to: first those that choose each arm's learning rate, then all others at the chosen one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from benchmarks.grid import Record
from benchmarks.studies.design import Cell, Preset, Study

__all__ = ["chosen_rates", "study_cells", "tuning_cells"]

Rates = Mapping[tuple[str, str], float]
"""The learning rate of each task and arm."""


def tuning_cells(study: Study, preset: Preset, seed: int) -> Iterator[Cell]:
    """Every learning rate of every arm, under the study's first condition."""
    for task, arm in product(preset.tasks, preset.arms or study.arms):
        for rate in study.arms[arm].learning_rates:
            yield Cell(task=task, arm=arm, condition=study.tuned_under, learning_rate=rate, seed=seed)


def chosen_rates(study: Study, preset: Preset, records: Sequence[Record], seed: int) -> Rates:
    """The rate of the best validation score, of those that are finished; test scores play no part.

    Args:
        study: Whose arms.
        preset: Which tasks and arms.
        records: Finished cells.
        seed: That of :func:`tuning_cells`.

    Returns:
        Of tasks and arms all of whose rates were tried; one at which training diverged is tried, and not chosen.
    """
    rates: dict[tuple[str, str], float] = {}
    found = {(r["task"], r["arm"], r["condition"], r["learning_rate"], r["seed"]): r for r in records}
    for task, arm in product(preset.tasks, preset.arms or study.arms):
        tried = [found.get((task, arm, study.tuned_under, rate, seed)) for rate in study.arms[arm].learning_rates]
        whole = [record for record in tried if record is not None]
        scored = [record for record in whole if "failure" not in record]
        if len(whole) == len(tried) and scored:
            best = max(scored, key=lambda record: float(record["best"]["validation"]))
            rates[task, arm] = float(best["learning_rate"])
    return rates


def study_cells(study: Study, preset: Preset, rates: Rates, seeds: Sequence[int]) -> Iterator[Cell]:
    """Every arm under every condition, repetition by repetition, where a learning rate is chosen."""
    conditions, arms = preset.conditions or study.conditions, preset.arms or study.arms
    for seed, task, condition, arm in product(seeds, preset.tasks, conditions, arms):
        about = study.conditions[condition].arms
        if (task, arm) in rates and (about is None or arm in about):
            yield Cell(task=task, arm=arm, condition=condition, learning_rate=rates[task, arm], seed=seed)
