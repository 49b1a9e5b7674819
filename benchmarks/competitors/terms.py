"""What every competitor is given: a weighted sum of products, in memory, in float32, as its own code has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["Term"]


class Term(NamedTuple):
    """``weight·B·A``."""

    weight: float
    """Not negative."""
    B: torch.Tensor
    """float32 ``[m, r]``, its scaling folded in."""
    A: torch.Tensor
    """float32 ``[r, n]``."""
