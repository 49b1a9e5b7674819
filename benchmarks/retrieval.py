"""How well queries find their targets: mean reciprocal rank and recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ranks_of_targets", "recall_at", "reciprocal_ranks"]


def ranks_of_targets(scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """The place of each query's own target, from 1.

    Args:
        scores: ``[n, n]``, higher is better; query ``i`` belongs to target ``i``. Of targets that score the same the
            own one comes last, so a model that cannot tell them apart gains nothing.

    Raises:
        ValueError: Not a square of finite numbers.

    Example:
        >>> ranks_of_targets(np.array([[0.9, 0.1], [0.8, 0.2]])).tolist()
        [1, 2]
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not np.isfinite(scores).all():
        raise ValueError(f"expected a square of finite scores, got shape {scores.shape}")
    ranks: NDArray[np.int64] = (scores >= np.diag(scores)[:, None]).sum(axis=1)
    return ranks


def reciprocal_ranks(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """``1/rank`` of each query; their mean is the MRR."""
    return 1.0 / ranks_of_targets(scores)


def recall_at(scores: NDArray[np.floating], k: int) -> float:
    """Share of the queries whose target is among the ``k`` best."""
    return float((ranks_of_targets(scores) <= k).mean())
