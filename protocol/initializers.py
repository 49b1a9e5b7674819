"""Starting values that both sides evaluate for themselves, so that they never travel.

A trainable that the base model does not have (a classification head, say) starts at a value that is a pure
function of ``(distribution, scale, seed, shape)``. Client and aggregator run this same NumPy code, PCG64 being
a stable stream by NumPy's compatibility policy (NEP 19) for ``random`` and ``integers``; only those two are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Distribution", "Initializer", "fresh_rows"]


class Distribution(StrEnum):
    """The families an initializer may draw from."""

    ZEROS = "zeros"
    """All zero; ``scale`` is ignored."""
    UNIFORM = "uniform"
    """Uniform on ``[-scale, scale)``."""
    NORMAL = "normal"
    """Normal with standard deviation ``scale`` (Box–Muller on the uniform stream)."""


@dataclass(frozen=True, kw_only=True)
class Initializer:
    """The starting value of a dense trainable that the base model does not have."""

    distribution: Distribution
    """Family to draw from."""
    scale: float = 0.0
    """Half-width (uniform) or standard deviation (normal); unitless, as the weight itself."""
    seed: int = 0
    """Seed of the stream, ``0 <= seed < 2**63``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", float(self.scale))  # 1 and 1.0 must give the manifest one digest

    def values(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The starting value.

        Args:
            shape: Shape of the tensor.

        Returns:
            float32 array of that shape, the same on every platform (``NORMAL``: as far as ``log1p`` and ``cos`` in
            float64 are, then rounded to float32).

        Example:
            >>> Initializer(distribution=Distribution.ZEROS).values((2,))
            array([0., 0.], dtype=float32)
        """
        if self.distribution is Distribution.ZEROS:
            return np.zeros(shape, np.float32)
        stream = np.random.Generator(np.random.PCG64(self.seed))
        if self.distribution is Distribution.UNIFORM:
            return ((stream.random(shape) * 2.0 - 1.0) * self.scale).astype(np.float32)
        radius = np.sqrt(-2.0 * np.log1p(-stream.random(shape)))
        return (radius * np.cos(2.0 * np.pi * stream.random(shape)) * self.scale).astype(np.float32)


def fresh_rows(seed: int, name: str, slots: range, in_features: int) -> NDArray[np.float32]:
    """Rows of ``A`` for LoRA slots that the global update does not reach yet.

    A fresh slot pairs a random row of ``A`` with a zero column of ``B``, so it changes nothing and still has a
    gradient. Rows are uniform on ``[-1/√n, 1/√n)``: the variance of PEFT's Kaiming start, mean norm ``1/√3``.

    Args:
        seed: Seed of the version that hands the slots out.
        name: Module name; each module has a stream of its own.
        slots: Which slots; a slot's row does not depend on which others are asked for.
        in_features: ``n``.

    Returns:
        float32 ``[len(slots), n]``.
    """
    bound = 1.0 / math.sqrt(in_features)
    key = [seed, *name.encode()]
    rows = [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence(key, spawn_key=(slot,)))).random(in_features)
        for slot in slots
    ]
    if not rows:
        return np.zeros((0, in_features), np.float32)
    return ((np.stack(rows) * 2.0 - 1.0) * bound).astype(np.float32)
