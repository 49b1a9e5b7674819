"""The report of a step from one offset to the next, whatever rule made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge import DenseReport, MergeReport, report_module
from aggregator.merge.vectors import combine, factors_of

if TYPE_CHECKING:
    from aggregator.merge import GlobalState
    from aggregator.merge.strategies.cohort import Cohort

__all__ = ["report_step"]


def report_step(before: GlobalState, after: GlobalState, cohort: Cohort) -> MergeReport:
    """Says what a merge did.

    Args:
        before: The offset that was handed out.
        after: The next one.
        cohort: Whose updates led there.
    """
    change = combine([(1.0, after), (-1.0, before)])
    return MergeReport(
        clients=len(cohort.updates),
        total_weight=cohort.total,
        modules=tuple(
            report_module(name, module, factors_of(change.low_rank[name]).norm(), cohort.ranks)
            for name, module in after.low_rank.items()
        ),
        dense=tuple(
            DenseReport(
                name=name, norm=float(np.linalg.norm(value)), update_norm=float(np.linalg.norm(change.dense[name]))
            )
            for name, value in after.dense.items()
        ),
    )
