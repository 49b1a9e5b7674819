"""Factors of unequal ranks, filled up with zeros to those of the state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from aggregator.merge.strategies.trained import Pair

__all__ = ["add_padded", "padded_mean"]


def add_padded(total: Pair, part: Pair, weight: float) -> None:
    """Adds ``w·pad(B̂)`` and ``w·pad(A)`` to a sum, in place.

    Args:
        total: ``[m, rank_max]`` and ``[rank_max, n]``.
        part: ``[m, r]`` and ``[r, n]``.
        weight: ``w``.
    """
    rank = len(part[1])
    total[0][:, :rank] += weight * part[0]
    total[1][:rank] += weight * part[1]


def padded_mean(weighted: Iterable[tuple[float, Pair]], held: Pair) -> Pair:
    """``Σ w_i·pad(B̂_i)`` and ``Σ w_i·pad(A_i)``.

    Args:
        weighted: ``w_i`` with ``B̂_i`` and ``A_i``; read once.
        held: The state's factors, whose shapes the mean has.
    """
    total = np.zeros_like(held[0]), np.zeros_like(held[1])
    for weight, factors in weighted:
        add_padded(total, factors, weight)
    return total
