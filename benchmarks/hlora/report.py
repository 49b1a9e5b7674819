"""Turns records into what the terminal shows, what the goals judge and what the result file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.grid import Record, cell_of, title
from benchmarks.hlora.arms import ARMS, BASELINE, RANKS
from benchmarks.hlora.footprint import Footprint
from benchmarks.hlora.settings import Cell
from benchmarks.hlora.workloads import WORKLOADS
from benchmarks.leads import Lead, mean_lead
from benchmarks.table import format_table

__all__ = ["Setting", "comparisons", "finished", "gain", "held", "held_loss", "measurements", "rows", "tables"]

_TARGET_SHARE = 0.8
"""Of what "delta, all at rank 16" gains over the untrained model: the score that rounds and bytes are counted to."""
_GAIN_MIN = 0.02
"""Gain that is no accident of a few hundred rows."""
_ROOM = "delta, all at rank 16"
_CODED = "delta, int8"


@dataclass(frozen=True, order=True)
class Setting:
    """A column of the grid: what is the same for all arms of one table."""

    task: str
    """Name in :data:`~benchmarks.hlora.workloads.WORKLOADS`."""
    participation: float
    """Share of the devices in a cohort."""
    alpha: float
    """Concentration of the label mixtures."""

    def __str__(self) -> str:
        return f"{self.task}, α = {self.alpha:g}, {self.participation:.0%} of the devices a round"


def finished(records: Sequence[Record]) -> dict[Setting, dict[str, dict[int, Record]]]:
    """Records that did not fail, by setting, arm and seed. Pooled data belongs to every α."""
    whole = [record for record in records if "failure" not in record]
    settings = {Setting(r["task"], r["participation"], r["alpha"]) for r in whole if r["alpha"] is not None}
    found: dict[Setting, dict[str, dict[int, Record]]] = {setting: {} for setting in sorted(settings)}
    for record in whole:
        for setting in settings:
            same = (record["task"], record["participation"]) == (setting.task, setting.participation)
            if same and record["alpha"] in (None, setting.alpha):
                found[setting].setdefault(record["arm"], {})[record["seed"]] = record
    return found


def held(record: Record) -> float:
    """What a device scores in the end at its own rank: the mean over the ranks, each of which as many devices have."""
    return _over_ranks(record, _metric(record))


def held_loss(record: Record) -> float:
    """The loss of what a device holds in the end at its own rank."""
    return _over_ranks(record, "loss")


def gain(record: Record, rank: int) -> float:
    """What a device of this rank holds in the end, above the untrained model."""
    return float(record["ranks"][str(rank)][_metric(record)] - record["curve"][0][_metric(record)])


def comparisons(records: Sequence[Record], value: Callable[[Record], float] = held) -> dict[str, Lead]:
    """The default against each other federated arm, on the same task, partition, cohorts and data order.

    A seed counts once, by its mean over all columns: those of one seed share their data, and some tell nothing.
    """
    ahead: dict[str, dict[int, list[float]]] = {}
    for arms in finished(records).values():
        federated = {arm: by_seed for arm, by_seed in arms.items() if not ARMS[arm].pooled}
        for arm, by_seed in federated.items():
            for seed in sorted(set(by_seed) & set(arms.get(BASELINE, {}))):
                lead = value(arms[BASELINE][seed]) - value(by_seed[seed])
                ahead.setdefault(arm, {}).setdefault(seed, []).append(lead)
    means = {arm: np.array([np.mean(leads) for leads in found.values()]) for arm, found in ahead.items()}
    return {arm: mean_lead(found) for arm, found in means.items() if arm != BASELINE and found.size > 1}


def measurements(records: Sequence[Record]) -> dict[str, float]:
    """What ``targets.toml`` sets goals for; a goal that nothing was run for is left out."""
    got: dict[str, float] = {}
    found = comparisons(records)
    rivals = [arm for arm in found if ARMS[arm].rank is None and arm != _CODED]
    if rivals:
        got["strategies_ahead"] = sum(found[arm].high < 0.0 for arm in rivals)
    if _CODED in found:
        got["int8_points_lost"] = 100 * found[_CODED].difference
        got["int8_bytes"] = _ratio(records, "update_bytes")
    return got


def rows(records: Sequence[Record], footprints: Sequence[Footprint]) -> Iterator[Record]:
    """Everything measured, then the comparisons."""
    yield from ({"kind": "run", **record} for record in records)
    yield from ({"kind": "footprint", **asdict(footprint)} for footprint in footprints)
    for of, value in (("metric", held), ("loss", held_loss)):
        for arm, found in comparisons(records, value).items():
            yield {"kind": "comparison", "of": of, "delta_against": arm, **asdict(found)}


def tables(records: Sequence[Record]) -> str:
    """A table for each setting, and the comparisons over all of them.

    Scores are of what a device holds in the end: on average, at each rank, and of the global update that the server
    holds. Share: of rank 16's gain over the untrained model, in rank 2. Rounds and MB, both ways: to the target.
    Unseen: per cent of the update's norm that rank 2 does not hold. Bias: per cent that a merge is off the exact one.
    """
    parts = [_setting_table(setting, arms) for setting, arms in finished(records).items()]
    failed = [f"{title(cell_of(record, Cell))}: {record['failure']}" for record in records if "failure" in record]
    return "\n\n".join([*parts, _comparison_table(records), *failed])


def _setting_table(setting: Setting, arms: Mapping[str, Mapping[int, Record]]) -> str:
    metric = WORKLOADS[setting.task].metric
    header = [str(setting), "seeds", f"{metric}, %", *(f"r={rank}" for rank in RANKS), "server", "share", "loss"]
    header += ["rounds", "MB", "unseen", "bias"]
    target = _target(arms)
    lines = []
    for arm in ARMS:
        if arm in arms:
            lines.append([arm, str(len(arms[arm])), *_cells(arms[arm], metric, target)])
    return format_table(header, lines)


def _cells(found: Mapping[int, Record], metric: str, target: float | None) -> Iterator[str]:
    yield _mean_over_seeds(found, held)
    for rank in map(str, RANKS):
        there = all(rank in record["ranks"] for record in found.values())
        yield f"{100 * np.mean([r['ranks'][rank][metric] for r in found.values()]):.1f}" if there else ""
    yield f"{100 * np.mean([record['server'][metric] for record in found.values()]):.1f}"
    mixed = all(str(rank) in record["ranks"] for record in found.values() for rank in RANKS)
    yield _share(found) if mixed else ""
    yield f"{np.mean([record['curve'][-1]['loss'] for record in found.values()]):.3f}"
    points = [_reached(record, metric, target) for record in found.values()]
    reached = [point for point in points if point is not None]
    some = f" ({len(reached)}/{len(points)})" if 0 < len(reached) < len(points) else ""
    yield f"{np.mean([p['round'] for p in reached]):.0f}{some}" if reached else "-"
    yield f"{np.mean([p['bytes_up'] + p['bytes_down'] for p in reached]) / 1e6:.1f}" if reached else "-"
    ends = [record["curve"][-1] for record in found.values()]
    lowest = str(min(RANKS))
    yield f"{100 * np.mean([end['unseen'][lowest] for end in ends]):.0f}" if mixed else ""
    yield f"{100 * np.mean([end['merge_bias'] for end in ends]):.2g}"


def _mean_over_seeds(records: Mapping[int, Record], value: Any) -> str:
    """Mean and standard deviation of a function of records, in points of a hundred."""
    values = [100 * value(record) for record in records.values()]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def _share(found: Mapping[int, Record]) -> str:
    """What share of the highest rank's gain the lowest has; none where there is no gain to speak of."""
    low, high = (np.mean([gain(record, rank) for record in found.values()]) for rank in (min(RANKS), max(RANKS)))
    return f"{100 * low / high:.0f}" if high > _GAIN_MIN else "-"


def _comparison_table(records: Sequence[Record]) -> str:
    header = ["delta is ahead of", "by points", "95 % interval", "by loss", "95 % interval"]
    losses = comparisons(records, lambda record: -held_loss(record))
    lines = [
        [arm, *_interval(lead, 100, 2), *_interval(losses[arm], 1, 4)] for arm, lead in comparisons(records).items()
    ]
    return format_table(header, lines)


def _interval(found: Lead, factor: float, digits: int) -> tuple[str, str]:
    """The difference, and where it lies."""
    by, low, high = (f"{factor * x:+.{digits}f}" for x in (found.difference, found.low, found.high))
    return by, f"{low} to {high}"


def _over_ranks(record: Record, metric: str) -> float:
    return float(np.mean([scores[metric] for scores in record["ranks"].values()]))


def _target(arms: Mapping[str, Mapping[int, Record]]) -> float | None:
    """The score that counts as reached; None where the arm that sets it was not run."""
    found = list(arms.get(_ROOM, {}).values())
    if not found:
        return None
    start = np.mean([record["curve"][0][_metric(record)] for record in found])
    return float(start + _TARGET_SHARE * (np.mean([held(record) for record in found]) - start))


def _reached(record: Record, metric: str, target: float | None) -> Record | None:
    """The first point of the curve that reaches the target."""
    points: list[Record] = record["curve"]
    return None if target is None else next((point for point in points if point[metric] >= target), None)


def _ratio(records: Sequence[Record], field: str) -> float:
    """Mean over all pairs of the coded arm's value over the baseline's."""
    ratios = [
        arms[_CODED][seed][field] / arms[BASELINE][seed][field]
        for arms in finished(records).values()
        for seed in set(arms.get(_CODED, {})) & set(arms.get(BASELINE, {}))
    ]
    return float(np.mean(ratios))


def _metric(record: Record) -> str:
    return WORKLOADS[record["task"]].metric
