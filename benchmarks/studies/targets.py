"""What it takes to reach a score that is the same for all arms of a condition: rounds, bytes, virtual seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.data.tasks import TASKS
from benchmarks.grid import Record
from benchmarks.table import format_bytes, format_table

__all__ = ["SHARE", "Effort", "effort", "target_of", "target_table"]

SHARE = 0.8
"""Of the reference's gain over the untrained model, on validation rows."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a run had taken when it first scored at least its target."""

    rounds: int
    """Merges."""
    total_bytes: int
    """Bytes of all devices, both ways."""
    virtual_s: float
    """Seconds of the virtual clock."""


def target_of(reference: Record) -> float | None:
    """The score that this run sets all arms; None: it gained nothing."""
    metric = TASKS[reference["task"]].metric
    start, *later = [float(point[metric]) for point in reference["curve"]]
    best = max(later, default=start)
    return start + SHARE * (best - start) if best > start else None


def effort(record: Record, target: float) -> Effort | None:
    """What a run took to its target; None: it never got there."""
    metric = TASKS[record["task"]].metric
    point = next((point for point in record["curve"] if point[metric] >= target), None)
    if point is None:
        return None
    total_bytes = point["bytes_up"] + point["bytes_down"]
    return Effort(rounds=point["round"], total_bytes=total_bytes, virtual_s=point["virtual_s"])


def target_table(arms: Sequence[str], records: Sequence[Record], condition: str) -> str:
    """Means over the seeds in which an arm reaches the target that the first arm sets with the same task and seed.

    Args:
        arms: In the order of the lines; the first one is the reference.
        records: Of any arms and conditions.
        condition: Which.

    Returns:
        The table; empty, where the reference was not run, or gained nothing.
    """
    here = [record for record in records if record["condition"] == condition and "curve" in record]
    targets = {_key(record): target_of(record) for record in here if record["arm"] == arms[0]}
    lines = []
    for task in sorted({record["task"] for record in here}):
        for arm in arms:
            of_arm = [record for record in here if (record["arm"], record["task"]) == (arm, task)]
            aims = [(record, targets.get(_key(record))) for record in of_arm]
            found = [effort(record, target) for record, target in aims if target is not None]
            if found:
                lines.append([arm, task, *_means(found)])
    header = [
        f"{condition}: to {SHARE:.0%} of the gain of {arms[0]}",
        "task",
        "reached",
        "rounds",
        "bytes",
        "virtual s",
    ]
    return format_table(header, lines) if lines else ""


def _key(record: Record) -> tuple[str, int]:
    return record["task"], record["seed"]


def _means(found: Sequence[Effort | None]) -> list[str]:
    reached = [each for each in found if each is not None]
    share = f"{len(reached)} of {len(found)}"
    if not reached:
        return [share, "-", "-", "-"]
    rounds, total_bytes, seconds = np.mean(
        [(each.rounds, each.total_bytes, each.virtual_s) for each in reached], axis=0
    )
    return [share, f"{rounds:.1f}", format_bytes(round(total_bytes)), f"{seconds:,.0f}"]
