"""By how much some runs are ahead of others that shared their seeds, and how sure that is after a handful of seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Lead", "mean_lead"]


@dataclass(frozen=True, kw_only=True)
class Lead:
    """By how much some runs are ahead of others."""

    difference: float
    """The mean over pairs, a fraction."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""


def mean_lead(differences: NDArray[np.float64]) -> Lead:
    """The mean of paired differences, with Student's interval for it.

    Not the bootstrap's: of three pairs that differ by chance alone, a quarter agree in sign, and all that is drawn from
    those agrees, too.

    Args:
        differences: ``[n]``, at least 2, as if from one normal distribution.

    Example:
        >>> mean_lead(np.array([0.01, 0.02, 0.03])).low < 0
        True
    """
    from scipy.stats import t  # slow to import, and not needed to say what a study is

    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(differences.size)
    half = float(t.ppf(0.975, differences.size - 1) * error)
    return Lead(difference=float(mean), low=float(mean) - half, high=float(mean) + half)
