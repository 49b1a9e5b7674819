"""Which cells a study comes to: first those that choose each arm's learning rate, then all others at the chosen one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from benchmarks.grid import Record
from benchmarks.studies.design import Cell, Preset, Study

__all__ = ["Tuned", "chosen_rates", "diverged", "study_cells", "tuning_cells"]

Tuned = tuple[str, str, str]
"""A task, an arm, and the condition that its learning rate is chosen under."""


def tuning_cells(study: Study, preset: Preset, seed: int) -> Iterator[Cell]:
    """Every learning rate of every arm, under each condition that rates are chosen under."""
    for tuned in _tuned(study, preset):
        yield from _tries(study, tuned, seed)


def chosen_rates(study: Study, preset: Preset, records: Sequence[Record], seed: int) -> Mapping[Tuned, float]:
    """The rate of the best validation score, of those that are finished; test scores play no part.

    Args:
        study: Whose arms.
        preset: Which tasks and arms.
        records: Finished cells.
        seed: That of :func:`tuning_cells`.

    Returns:
        Of those all of whose rates were tried; one at which training diverged is tried, and not chosen.
    """
    rates: dict[Tuned, float] = {}
    for tuned in _tuned(study, preset):
        scored = [record for record in _tried(study, tuned, records, seed) if "failure" not in record]
        if scored:
            best = max(scored, key=lambda record: float(record["best"]["validation"]))
            rates[tuned] = float(best["learning_rate"])
    return rates


def diverged(study: Study, preset: Preset, records: Sequence[Record], seed: int) -> list[Tuned]:
    """What has no learning rate, since training diverged at every one that was tried."""
    tried = {tuned: _tried(study, tuned, records, seed) for tuned in _tuned(study, preset)}
    return [tuned for tuned, found in tried.items() if found and all("failure" in record for record in found)]


def study_cells(study: Study, preset: Preset, rates: Mapping[Tuned, float], seeds: Sequence[int]) -> Iterator[Cell]:
    """Every arm under every condition, repetition by repetition, where a learning rate is chosen."""
    for seed, task, condition in product(seeds, preset.tasks, preset.conditions or study.conditions):
        for arm in study.arms_of(condition, preset):
            rate = rates.get((task, arm, study.tuned_under(condition)))
            if rate is not None:
                yield Cell(task=task, arm=arm, condition=condition, learning_rate=rate, seed=seed)


def _tuned(study: Study, preset: Preset) -> list[Tuned]:
    conditions = preset.conditions or study.conditions
    return list(
        dict.fromkeys(
            (task, arm, study.tuned_under(condition))
            for condition in conditions
            for task in preset.tasks
            for arm in study.arms_of(condition, preset)
        )
    )


def _tries(study: Study, tuned: Tuned, seed: int) -> list[Cell]:
    task, arm, condition = tuned
    return [
        Cell(task=task, arm=arm, condition=condition, learning_rate=rate, seed=seed)
        for rate in study.arms[arm].learning_rates
    ]


def _tried(study: Study, tuned: Tuned, records: Sequence[Record], seed: int) -> list[Record]:
    """Records of all tries; none, while one of them is not finished."""
    known = {(r["task"], r["arm"], r["condition"], r["learning_rate"], r["seed"]): r for r in records}
    tries = _tries(study, tuned, seed)
    found = [known.get((c.task, c.arm, c.condition, c.learning_rate, c.seed)) for c in tries]
    whole = [record for record in found if record is not None]
    return whole if len(whole) == len(tries) else []
