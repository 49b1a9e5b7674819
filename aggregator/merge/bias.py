"""How far one matrix is from another, from factors alone: how much of it is length, and how much is direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aggregator.merge.algebra import Factors, stack
from aggregator.merge.leading import Leading

__all__ = ["Bias", "bias_of_mean_handout", "measure_bias"]


@dataclass(frozen=True, kw_only=True)
class Bias:
    """A matrix ``X`` in place of ``W``."""

    error: float
    """``‖X − W‖ / ‖W‖``."""
    gain: float
    """``⟨X, W⟩ / ‖W‖²``: 1 if nothing is diluted; a wrong scale is all gain."""
    direction: float
    """``√(1 − cos²)`` of the angle between the two: 0 if ``X`` is a multiple of ``W``."""


def measure_bias(merged: Factors, ideal: Factors) -> Bias:
    """The bias of what a rule merged.

    All norms come from the QR cores: Gram matrices would lose half the digits where the two are close.

    Args:
        merged: ``X``.
        ideal: ``W = Σ p_i s_i B_i A_i``, of the same shape.

    Returns:
        No bias if both are zero; an infinite error if only ``W`` is zero.

    Example:
        >>> half = Factors(np.eye(3) / 2, np.eye(3))
        >>> bias = measure_bias(half, Factors(np.eye(3), np.eye(3)))
        >>> round(bias.error, 9), round(bias.gain, 9), round(bias.direction, 9)
        (0.5, 0.5, 0.0)
    """
    both = stack([merged, ideal])
    R_left, R_right = np.linalg.qr(both.left).R, np.linalg.qr(both.right.T).R
    X = R_left[:, : merged.width] @ R_right[:, : merged.width].T
    W = R_left[:, merged.width :] @ R_right[:, merged.width :].T
    length, other = float(np.linalg.norm(W)), float(np.linalg.norm(X))
    if not length:
        return Bias(error=math.inf if other else 0.0, gain=0.0 if other else 1.0, direction=1.0 if other else 0.0)
    gain = float(np.vdot(X, W)) / length**2
    away = float(np.linalg.norm(X - gain * W)) / other if other else 0.0
    return Bias(error=float(np.linalg.norm(X - W)) / length, gain=gain, direction=min(1.0, away))


def bias_of_mean_handout(state: Leading, retention: Mapping[int, float]) -> Bias:
    """The bias of ``Σ p_i trunc_{r_i}(M)``, what a cohort holds on average, in place of ``M``.

    It is what a rule that averages hand-outs back in would lose in this round; this one loses none of it, but trains at
    that distance.

    Args:
        state: ``M``; triplets beyond :attr:`Leading.top` count as held by nobody.
        retention: Rank → share of the weight of devices with at least that rank, ascending.
    """
    energy = state.top.S**2
    if not energy.size:
        return Bias(error=0.0, gain=1.0, direction=0.0)
    held = np.array([held_share(slot, retention) for slot in range(1, energy.size + 1)])
    gain = float(held @ energy) / state.norm**2
    missed = float((1.0 - held) ** 2 @ energy) + state.tail_norm(energy.size) ** 2
    cosine = float(held @ energy) / (state.norm * math.sqrt(float(held**2 @ energy))) if held.any() else 0.0
    return Bias(error=math.sqrt(missed) / state.norm, gain=gain, direction=math.sqrt(max(0.0, 1.0 - cosine**2)))


def held_share(slot: int, retention: Mapping[int, float]) -> float:
    """``P_j``: the weight of the devices that hold slot ``j``, counted from 1."""
    return next((share for rank, share in retention.items() if rank >= slot), 0.0)
