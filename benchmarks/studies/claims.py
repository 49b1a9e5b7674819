"""What a study's paper claims, checked on the same tasks and seeds: it holds, it fails, or the runs leave it open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data.tasks import TASKS
from benchmarks.grid import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Claim", "Finding", "Lead", "Verdict", "mean_lead", "scores_of"]


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
class Lead:
    """By how much some runs are ahead of others."""

    difference: float
    """The mean over pairs, a fraction."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""


def mean_lead(differences: NDArray[np.float64]) -> Lead:
    """The mean of paired differences, with Student's interval for it.

    Not the bootstrap's: of three pairs that differ by chance alone, a quarter agree in sign, and all that is drawn from
    those agrees, too.

    Args:
        differences: ``[n]``, at least 2, as if from one normal distribution.

    Example:
        >>> mean_lead(np.array([0.01, 0.02, 0.03])).low < 0
        True
    """
    from scipy.stats import t  # slow to import, and not needed to say what a study is

    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(differences.size)
    half = float(t.ppf(0.975, differences.size - 1) * error)
    return Lead(difference=float(mean), low=float(mean) - half, high=float(mean) + half)


Side = tuple[str, str]
"""An arm, and a condition that it runs under."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """That runs score more than others by a margin: ``Σ ahead − Σ behind > margin``, on each task and seed."""

    what: str
    """In words."""
    ahead: Sequence[Side]
    """What adds."""
    behind: Sequence[Side]
    """What is subtracted: as many, so that a comparison of differences is one of scores."""
    margin: float = 0.0
    """By how much, a fraction; below 0: that the first are behind by no more than this."""

    @property
    def sides(self) -> frozenset[Side]:
        """All that it compares."""
        return frozenset((*self.ahead, *self.behind))

    def check(self, records: Sequence[Record]) -> Finding:
        """Compares on the tasks and seeds that all have."""
        scores = {side: scores_of(records, *side) for side in self.sides}
        keys = sorted(set.intersection(*(set(found) for found in scores.values())))
        if len(keys) < 2:
            return Finding(what=self.what, verdict=Verdict.NOT_RUN, pairs=len(keys))
        ahead, behind = (
            np.array([sum(scores[side][key] for side in sides) for key in keys]) for sides in (self.ahead, self.behind)
        )
        found = mean_lead(ahead - behind)
        if found.low > self.margin:
            verdict = Verdict.HOLDS
        else:
            verdict = Verdict.FAILS if found.high < self.margin else Verdict.OPEN
        return Finding(what=self.what, verdict=verdict, pairs=len(keys), found=found)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of a claim."""

    what: str
    """The claim, in words."""
    verdict: Verdict
    """Whether it holds here."""
    pairs: int
    """Runs of each that were compared, by task and seed."""
    found: Lead | None = None
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
