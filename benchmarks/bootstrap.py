"""Paired bootstrap: whether one system beats another on the same queries, or the queries were kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Comparison", "compare_paired"]

_CHUNK = 1000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of ``a`` against ``b``."""

    difference: float
    """Mean of ``a − b``."""
    low: float
    """Lower end of the 95 % interval of that mean."""
    high: float
    """Upper end."""
    p: float
    """One-sided: share of the resamples in which ``a`` is not ahead, with one added above and below."""

    @property
    def better(self) -> bool:
        """Whether ``a`` is ahead at the 5 % level."""
        return self.p < 0.05


def compare_paired(
    a: NDArray[np.float64], b: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0
) -> Comparison:
    """Resamples queries with replacement, both systems' scores of one query together.

    ``p = (1 + #{mean*(a − b) ≤ 0}) / (1 + resamples)``, which is never 0.

    Args:
        a: ``[n]`` scores by query, such as reciprocal ranks.
        b: ``[n]`` scores of the other system on the same queries.
        resamples: Draws.
        seed: Seed of the draws.

    Raises:
        ValueError: The scores are not of the same, at least one, queries.

    Reference: Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004, section 3
    (paired bootstrap); Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2 (the p).
    """
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"expected scores of the same queries, got shapes {a.shape} and {b.shape}")
    difference, rng = a - b, np.random.default_rng(seed)
    sizes = [min(_CHUNK, resamples - start) for start in range(0, resamples, _CHUNK)]
    draws = [difference[rng.integers(0, a.size, (size, a.size))].mean(axis=1) for size in sizes]
    means = np.concatenate(draws)
    low, high = np.quantile(means, [0.025, 0.975])
    return Comparison(
        difference=float(difference.mean()),
        low=float(low),
        high=float(high),
        p=float((1 + (means <= 0).sum()) / (1 + resamples)),
    )
