"""What a study's paper claims, checked on the same tasks and seeds: it holds, it fails, or the runs leave it open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from benchmarks.data.tasks import TASKS
from benchmarks.grid import Record
from benchmarks.leads import Lead, mean_lead

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
