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
from aggregator.merge.bias import held_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aggregator.merge import Cohort, GlobalState
    from protocol.manifest import LowRankModule, Manifest

__all__ = ["fading"]


def fading(
    state: GlobalState,
    manifest: Manifest,
    cohort: Cohort,
    update_norms: Mapping[str, float],
    *,
    retention: float,
    seen_by_all: int,
) -> Increment:
    """``−(1 − ρ)·min(1, ‖D‖/‖R‖)·R`` of every low-rank module.

    Args:
        state: ``M``, handed out with its largest directions first.
        manifest: The run's universe.
        cohort: Who trained at which rank.
        update_norms: ``‖D‖`` by module.
        retention: ``ρ``, in [0, 1].
        seen_by_all: Directions that every client saw, whatever its rank: all slots, if it holds a residual.
    """
    low_rank = {}
    for module in manifest.low_rank:
        tail = _unseen(state, module, cohort, seen_by_all)
        norm = tail.norm()
        if norm > 0:
            low_rank[module.name] = tail.scaled(-(1.0 - retention) * min(1.0, update_norms[module.name] / norm))
    return Increment(low_rank=low_rank, dense={})


def _unseen(state: GlobalState, module: LowRankModule, cohort: Cohort, seen_by_all: int) -> Factors:
    """``R``; a client that was not given the module to train does not count."""
    svd, shares = state.low_rank[module.name].svd, cohort.retention(module)
    present = held_share(1, shares)
    weight = np.array([present - held_share(slot, shares) for slot in range(1, svd.rank + 1)])
    if seen_by_all:
        weight = np.where(np.arange(svd.rank) < seen_by_all, 0.0, present)
    return Factors(svd.U * (svd.S * weight), svd.Vt).pruned()
