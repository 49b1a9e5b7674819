"""States as vectors: linear combinations in product space, exact, with the certificates carried along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.algebra import LowRank, stack
from aggregator.merge.module_state import ModuleState
from aggregator.merge.state import GlobalState

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["combine"]

Terms = Sequence[tuple[float, GlobalState]]


def combine(terms: Terms) -> GlobalState:
    """``Σ c_j·X_j``.

    Args:
        terms: At least one ``(c, X)``, all of one manifest.

    Returns:
        The sum, its rank numerically exact. What the terms' own computations dropped counts ``|c|`` times.
    """
    first = terms[0][1]
    return GlobalState(
        low_rank={name: _combine_modules([(c, x.low_rank[name]) for c, x in terms]) for name in first.low_rank},
        dense={name: _sum([c * x.dense[name] for c, x in terms]) for name in first.dense},
    )


def _combine_modules(terms: Sequence[tuple[float, ModuleState]]) -> ModuleState:
    parts = [module.factors().scaled(c) for c, module in terms if c != 0.0]
    empty = ModuleState(LowRank.zeros(*terms[0][1].shape))
    total = empty.add(stack(parts)) if parts else empty
    return ModuleState(total.value, total.discarded + sum(abs(c) * module.discarded for c, module in terms))


def _sum(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    total = np.zeros(arrays[0].shape)
    for array in arrays:
        total += array
    return total
