"""How a device scales its LoRA adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LoraSettings"]

_DEFAULT_SCALING = 2.0
"""PEFT's and QLoRA's habit α = 2r."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """This device's own LoRA settings; the rank comes with each assignment."""

    lora_alpha: float | None = None
    """PEFT's ``lora_alpha``; None: the value that makes the scaling 2."""
    use_rslora: bool = False
    """Scaling ``α/√r`` instead of ``α/r``."""

    def alpha(self, rank: int) -> float:
        """``lora_alpha`` at a rank."""
        return _DEFAULT_SCALING * self._divisor(rank) if self.lora_alpha is None else self.lora_alpha

    def scaling(self, rank: int) -> float:
        """``s`` at a rank.

        Example:
            >>> LoraSettings().scaling(8), LoraSettings(lora_alpha=16, use_rslora=True).scaling(4)
            (2.0, 8.0)
        """
        return self.alpha(rank) / self._divisor(rank)

    def _divisor(self, rank: int) -> float:
        return math.sqrt(rank) if self.use_rslora else float(rank)
