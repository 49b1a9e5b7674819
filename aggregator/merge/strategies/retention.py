"""Retention: what clients do not see of the model fades as fast as they change what they see, and no faster.

Plain deltas overshoot when clients differ strongly: a client that cannot see the tail pushes it again every round.
HLoRA does not, since it forgets the tail, but it forgets too when nobody learns. In between, with ``D`` the merged
update, ``R = Σ p_i (M − trunc_{r_i}(M))`` the tail that the cohort did not see, and ``ρ`` the retention:

    M' = M + D − (1 − ρ)·min(1, ‖D‖/‖R‖)·R

``ρ = 1`` is the delta form; the bound by ``‖D‖`` makes the fading vanish with the updates. ``R`` has the singular
vectors of ``M``: direction ``j`` counts by the weight of the clients whose hand-out ended before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge import Factors, Increment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aggregator.merge import GlobalState, LowRank
    from aggregator.merge.strategies.cohort import Cohort

__all__ = ["fading"]


def fading(
    state: GlobalState, cohort: Cohort, update_norms: Mapping[str, float], *, retention: float, residual: bool
) -> Increment:
    """``−(1 − ρ)·min(1, ‖D‖/‖R‖)·R`` of every low-rank module.

    Args:
        state: ``M``, handed out with its largest directions first.
        cohort: Who trained on how many slots.
        update_norms: ``‖D‖`` by module.
        retention: ``ρ``, in [0, 1].
        residual: Whether the clients saw all slots of the hand-out.
    """
    low_rank = {}
    for name, module in state.low_rank.items():
        tail = _unseen(module.svd, cohort, name, residual=residual)
        norm = tail.norm()
        if norm > 0:
            low_rank[name] = tail.scaled(-(1.0 - retention) * min(1.0, update_norms[name] / norm))
    return Increment(low_rank=low_rank, dense={})


def _unseen(svd: LowRank, cohort: Cohort, name: str, *, residual: bool) -> Factors:
    """``R``; a client that was not given the module to train does not count."""
    weight = np.zeros(svd.rank)
    for update in cohort.updates:
        if update.active is None or name in update.active:
            weight[cohort.handout.rank if residual else update.rank :] += cohort.share(update)
    return Factors(svd.U * (svd.S * weight), svd.Vt).pruned()
