"""The report of a step from one offset to the next, whatever rule made it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge import DenseReport, MergeReport, measure_bias, report_module, stack
from aggregator.merge.vectors import combine, factors_of

if TYPE_CHECKING:
    from aggregator.merge import Cohort, GlobalState, ModuleReport
    from aggregator.merge.strategies.cohort import TrainedCohort
    from protocol.manifest import LowRankModule, Manifest

__all__ = ["report_offsets", "report_step"]


def report_step(before: GlobalState, after: GlobalState, cohort: TrainedCohort, step: float) -> MergeReport:
    """Says what a merge did, and how far that is from the exact rule's ``M + η·Σ p_i D_i``.

    Args:
        before: The offset that was handed out.
        after: The next one.
        cohort: Whose updates led there.
        step: ``η``.
    """
    report = report_offsets(before, after, cohort.manifest, cohort.checked)
    return replace(report, modules=tuple(_with_bias(each, before, after, cohort, step) for each in report.modules))


def report_offsets(before: GlobalState, after: GlobalState, manifest: Manifest, cohort: Cohort) -> MergeReport:
    """Says what a merge did.

    Args:
        before: The offset that was handed out.
        after: The next one.
        manifest: The run's universe.
        cohort: Whose updates led there.
    """
    change = combine([(1.0, after), (-1.0, before)])
    return MergeReport(
        clients=len(cohort.members),
        total_weight=cohort.total_weight,
        modules=tuple(_module(module, after, change, cohort) for module in manifest.low_rank),
        dense=tuple(
            DenseReport(
                name=name, norm=float(np.linalg.norm(value)), update_norm=float(np.linalg.norm(change.dense[name]))
            )
            for name, value in after.dense.items()
        ),
    )


def _module(module: LowRankModule, after: GlobalState, change: GlobalState, cohort: Cohort) -> ModuleReport:
    update_norm = factors_of(change.low_rank[module.name]).norm()
    report = report_module(module.name, after.low_rank[module.name], update_norm, cohort.ranks)
    return replace(report, retention=cohort.retention(module))


def _with_bias(
    report: ModuleReport, before: GlobalState, after: GlobalState, cohort: TrainedCohort, step: float
) -> ModuleReport:
    ideal = stack([factors_of(before.low_rank[report.name]), cohort.mean_change(report.name).scaled(step)])
    return replace(report, merge_bias=measure_bias(factors_of(after.low_rank[report.name]), ideal))
