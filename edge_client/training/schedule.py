"""The learning rate within one round: up from zero, then down to zero, since moments are fresh every round."""

from __future__ import annotations

import math

__all__ = ["warmup_then_linear"]


def warmup_then_linear(step: int, steps: int, warmup_ratio: float) -> float:
    """Factor on the peak learning rate.

    It climbs to 1 over the first ``w = ⌈warmup_ratio·steps⌉`` steps and falls linearly, to ``1/(steps − w)`` at the
    last one, so that no step is wasted at zero.

    Args:
        step: From 0.
        steps: In all.
        warmup_ratio: Share of the steps to climb over, in [0, 1].

    Example:
        >>> [round(warmup_then_linear(step, 5, 0.4), 2) for step in range(5)]
        [0.5, 1.0, 1.0, 0.67, 0.33]
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / (steps - warmup)
