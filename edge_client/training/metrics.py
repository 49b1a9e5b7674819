"""What an evaluation reports, from plain arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["classification", "language", "regression", "retrieval"]


def classification(predicted: NDArray[np.int64], labels: NDArray[np.int64], classes: int) -> dict[str, float]:
    """Accuracy and Matthews correlation; with two classes also the F1 of class 1.

    Example:
        >>> classification(np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]), 2)["f1"]
        0.8
    """
    table = np.zeros((classes, classes), np.float64)
    np.add.at(table, (labels, predicted), 1.0)
    found = {"accuracy": float(np.trace(table) / table.sum()), "matthews": _matthews(table)}
    if classes == 2:
        denominator = 2 * table[1, 1] + table[0, 1] + table[1, 0]
        found["f1"] = float(2 * table[1, 1] / denominator) if denominator else 0.0
    return found


def _matthews(table: NDArray[np.float64]) -> float:
    """The multi-class form ``R_K`` (Gorodkin 2004, Computational Biology and Chemistry 28, eq. 8); 0 if undefined."""
    total, true, guessed = table.sum(), table.sum(1), table.sum(0)
    covariance = np.trace(table) * total - true @ guessed
    variance = (total**2 - guessed @ guessed) * (total**2 - true @ true)
    return float(covariance / math.sqrt(variance)) if variance > 0 else 0.0


def regression(predicted: NDArray[np.float64], targets: NDArray[np.float64]) -> dict[str, float]:
    """Mean squared error and Pearson correlation (0 where one side is constant)."""
    error = float(np.mean((predicted - targets) ** 2))
    x, y = predicted - predicted.mean(), targets - targets.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return {"mse": error, "pearson": float(x @ y) / scale if scale > 0 else 0.0}


def retrieval(queries: NDArray[np.float32], targets: NDArray[np.float32], cutoff: int = 10) -> dict[str, float]:
    """Mean reciprocal rank and recall at a cutoff: query ``i`` is to find target ``i`` among all targets.

    Args:
        queries: Unit vectors ``[n, d]``.
        targets: Unit vectors ``[n, d]``.
        cutoff: ``k`` of ``recall@k``.

    Ties count against the query: a target that scores the same ranks before its own.
    """
    scores = queries @ targets.T
    own = np.diagonal(scores)[:, None]
    ranks = (scores >= own).sum(axis=1)
    return {"mrr": float(np.mean(1.0 / ranks)), f"recall@{cutoff}": float(np.mean(ranks <= cutoff))}


def language(loss: float) -> dict[str, float]:
    """Perplexity ``exp(loss)``, bounded so that it stays finite."""
    return {"perplexity": math.exp(min(loss, 700.0))}
