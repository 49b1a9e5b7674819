"""The report of a step from one offset to the next, whatever rule made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge import DenseReport, Factors, MergeReport, ModuleReport, measure_bias, stack
from aggregator.merge.bias import measure_difference
from aggregator.merge.rounds import report_merged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.merge import Cohort, MergedModule, ModuleState
    from aggregator.merge.bias import Bias, Part
    from aggregator.merge.strategies.trained import TrainedCohort
    from protocol.manifest import LowRankModule

__all__ = ["report_round", "report_step"]

Dense = Mapping[str, "NDArray[np.float64]"]


def report_step(
    module: LowRankModule, before: ModuleState, merged: MergedModule, cohort: TrainedCohort, step: float
) -> ModuleReport:
    """Says what a merge did to a module, and how far that is from the exact rule's ``M + η·Σ p_i D_i``.

    Args:
        module: It.
        before: Its offset that was handed out.
        merged: The next one.
        cohort: Whose updates led there.
        step: ``η``.
    """
    after, base = _term(merged.state), _term(before)
    moved = _difference_norm(after, base)
    ranks = {1, *cohort.checked.ranks}
    told = report_merged(module.name, replace(merged, update_norm=moved), ranks, cohort.checked.retention(module))
    return replace(told, merge_bias=_bias(after, [base, cohort.mean_change(module, step)]))


def report_round(cohort: Cohort, modules: tuple[ModuleReport, ...], before: Dense, after: Dense) -> MergeReport:
    """All of a merge's report, from those of its modules."""
    return MergeReport(
        clients=len(cohort.members),
        total_weight=cohort.total_weight,
        modules=modules,
        dense=tuple(
            DenseReport(
                name=name, norm=float(np.linalg.norm(value)), update_norm=float(np.linalg.norm(value - before[name]))
            )
            for name, value in after.items()
        ),
    )


def _term(module: ModuleState) -> Part:
    return module.value if isinstance(module.value, np.ndarray) else module.factors()


def _difference_norm(one: Part, other: Part) -> float:
    narrow = _narrow([one, other])
    if narrow is None:
        return measure_difference([one], [other]).norm
    return stack([narrow[0], narrow[1].scaled(-1.0)]).norm()


def _bias(merged: Part, ideal: list[Part]) -> Bias:
    narrow = _narrow([merged, *ideal])
    if narrow is None:
        return measure_difference([merged], ideal).bias
    return measure_bias(narrow[0], stack(narrow[1:]))


def _narrow(parts: list[Part]) -> list[Factors] | None:
    """These as factors, if all are and a QR of all of them is cheaper than multiplying them out."""
    factors = [part for part in parts if isinstance(part, Factors)]
    few = sum(part.width for part in factors) < min(parts[0].shape)
    return factors if few and len(factors) == len(parts) else None
