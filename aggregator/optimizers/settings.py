"""Checks that optimizers share on their settings."""

from __future__ import annotations

import math
from typing import NoReturn

from aggregator.merge import MergeError

__all__ = ["check_positive", "check_share", "refuse_module"]


def check_positive(**settings: float) -> None:
    """Raises MergeError unless all are positive and finite."""
    for name, value in settings.items():
        if not 0.0 < value < math.inf:
            raise MergeError(f"{name} must be positive and finite, got {value}")


def check_share(**settings: float) -> None:
    """Raises MergeError unless all are in ``[0, 1)``."""
    for name, value in settings.items():
        if not 0.0 <= value < 1.0:
            raise MergeError(f"{name} must be in [0, 1), got {value}")


def refuse_module(name: str) -> NoReturn:
    """Raises MergeError: this low-rank module was given to an optimizer of dense tensors."""
    raise MergeError(
        f"{name!r} is a low-rank module, and this optimizer is for dense tensors; "
        "combine it with Sgd or Momentum by PerKind"
    )
