"""What a study's paper claims, checked on the same tasks and seeds: it holds, it fails, or the runs leave it open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from benchmarks.bootstrap import Comparison, compare_paired
from benchmarks.data.tasks import TASKS
from benchmarks.grid import Record

__all__ = ["Claim", "Finding", "Verdict", "scores_of"]


class Verdict(StrEnum):
    """What came of a claim."""

    HOLDS = "holds"
    """The 95 % interval lies above the margin."""
    FAILS = "fails"
    """It lies below."""
    OPEN = "open"
    """It contains the margin."""
    NOT_RUN = "not run"
    """There are not two pairs of runs to compare."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That one arm under one condition scores more than another by a margin."""

    what: str
    """In words."""
    arm: str
    """The one that is ahead."""
    condition: str
    """What it runs under."""
    over_arm: str
    """The one that is behind."""
    over_condition: str
    """What that runs under."""
    margin: float = 0.0
    """By how much, a fraction; below 0: that the first is behind by no more than this."""

    def check(self, records: Sequence[Record]) -> Finding:
        """Compares the two on the tasks and seeds that both have."""
        ahead, behind = (
            scores_of(records, self.arm, self.condition),
            scores_of(records, self.over_arm, self.over_condition),
        )
        both = sorted(set(ahead) & set(behind))
        if len(both) < 2:
            return Finding(what=self.what, verdict=Verdict.NOT_RUN, pairs=len(both))
        found = compare_paired(np.array([ahead[key] for key in both]), np.array([behind[key] for key in both]))
        if found.low > self.margin:
            verdict = Verdict.HOLDS
        else:
            verdict = Verdict.FAILS if found.high < self.margin else Verdict.OPEN
        return Finding(what=self.what, verdict=verdict, pairs=len(both), found=found)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of a claim."""

    what: str
    """The claim, in words."""
    verdict: Verdict
    """Whether it holds here."""
    pairs: int
    """Runs of each that were compared, by task and seed."""
    found: Comparison | None = None
    """By how much the first is ahead; None: not run."""


def scores_of(records: Sequence[Record], arm: str, condition: str) -> Mapping[tuple[str, int], float]:
    """Test scores by task and seed: of the version that validated best, or what devices alone end with."""
    return {
        (record["task"], record["seed"]): float(
            record.get("best", record["last"])["test"][TASKS[record["task"]].metric]
        )
        for record in records
        if "failure" not in record and (record["arm"], record["condition"]) == (arm, condition)
    }
