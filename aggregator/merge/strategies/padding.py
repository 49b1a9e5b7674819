"""The mean of factors of unequal ranks, missing slots counting as zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from aggregator.merge.strategies.cohort import Pair, TrainedCohort

__all__ = ["padded_mean"]


def padded_mean(cohort: TrainedCohort, name: str, held: Pair, weights: Sequence[float]) -> Pair:
    """``Σ w_i·pad(B̂_i)`` and ``Σ w_i·pad(A_i)``.

    Args:
        cohort: The clients.
        name: Module.
        held: The state's factors, whose shapes the mean has.
        weights: One a client, in the cohort's order.
    """
    B, A = (np.zeros_like(part) for part in held)
    for update, weight in zip(cohort.updates, weights, strict=True):
        trained_B, trained_A = cohort.trained(update, name)
        B[:, : update.rank] += weight * trained_B
        A[: update.rank] += weight * trained_A
    return B, A
