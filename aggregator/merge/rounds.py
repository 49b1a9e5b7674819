"""One round: a pure function from the cohort's updates to the next state and its report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.delta import ClientUpdate, DeltaAccumulator, check_cohort
from aggregator.merge.errors import MergeError
from aggregator.merge.handout import handout_errors
from aggregator.merge.report import DenseReport, MergeReport, ModuleReport

if TYPE_CHECKING:
    from aggregator.merge.state import GlobalState, Increment, ModuleState
    from protocol.manifest import Manifest
    from protocol.payload import AdapterTensors

__all__ = ["merge_round", "report_module"]


def merge_round(
    state: GlobalState,
    manifest: Manifest,
    handout: AdapterTensors,
    updates: Iterable[ClientUpdate],
    *,
    server_learning_rate: float = 1.0,
    report_ranks: Iterable[int] = (),
) -> tuple[GlobalState, MergeReport]:
    """``M' = M + η·Σ p_i D_i`` with ``p_i = num_examples_i / Σ num_examples``.

    The result is a pure function of the arguments, whatever the order of ``updates``: with one BLAS thread, bit-equal
    on one machine; across machines, equal to rounding.

    Args:
        state: The version that was handed out.
        manifest: The run's universe.
        handout: That version's hand-out, decoded from what was sent, at least as many slots as any update has.
        updates: The cohort, in any order.
        server_learning_rate: ``η``.
        report_ranks: Further ranks to report hand-out errors for; those of the cohort are always in.

    Returns:
        The next state and what happened.

    Raises:
        MergeError: The cohort is empty, or an update does not fit. The state, a value, is as it was.
    """
    if not (math.isfinite(server_learning_rate) and server_learning_rate > 0):
        raise MergeError(f"the server learning rate must be positive and finite, got {server_learning_rate}")
    cohort = check_cohort(updates)
    total = sum(update.num_examples for update in cohort)
    accumulator = DeltaAccumulator(manifest, handout, total)
    for update in cohort:
        accumulator.add(update)
    increment = accumulator.finish().scaled(server_learning_rate)
    merged = state.add(increment)
    ranks = sorted({*report_ranks, *(update.rank for update in cohort)})
    return merged, _report(merged, increment, len(cohort), total, ranks)


def report_module(name: str, state: ModuleState, update_norm: float, ranks: Iterable[int]) -> ModuleReport:
    """The report of one low-rank module.

    Args:
        name: Module.
        state: Its offset after the merge.
        update_norm: Norm of what the merge added.
        ranks: Ranks to give hand-out errors for.
    """
    svd = state.svd
    return ModuleReport(
        name=name,
        rank=svd.rank,
        effective_rank=svd.effective_rank,
        norm=svd.norm,
        update_norm=update_norm,
        merge_error=state.discarded / svd.norm if svd.rank else 0.0,
        handout_error=handout_errors(svd, ranks),
    )


def _report(state: GlobalState, increment: Increment, clients: int, total: int, ranks: list[int]) -> MergeReport:
    return MergeReport(
        clients=clients,
        total_weight=total,
        modules=tuple(
            report_module(name, module, increment.low_rank[name].norm(), ranks)
            for name, module in state.low_rank.items()
        ),
        dense=tuple(
            DenseReport(
                name=name,
                norm=float(np.linalg.norm(value)),
                update_norm=float(np.linalg.norm(increment.dense[name])),
            )
            for name, value in state.dense.items()
        ),
    )
