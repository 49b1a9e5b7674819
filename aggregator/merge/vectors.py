"""States as vectors: linear combinations in product space, exact, with the certificates carried along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.algebra import Factors, LowRank, stack
from aggregator.merge.state import GlobalState, Increment, ModuleState

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["as_increment", "combine", "factors_of"]

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


def as_increment(state: GlobalState) -> Increment:
    """A state as something to add to another; what is zero in it then leaves the other as it is, to the bit."""
    return Increment(low_rank={name: factors_of(m) for name, m in state.low_rank.items()}, dense=state.dense)


def factors_of(module: ModuleState) -> Factors:
    """A module's offset as a product; a dense one as itself times the identity."""
    if isinstance(module.value, LowRank):
        return module.value.factors()
    return module.value if isinstance(module.value, Factors) else Factors(module.value, np.eye(module.shape[1]))


def _combine_modules(terms: Sequence[tuple[float, ModuleState]]) -> ModuleState:
    parts = [factors_of(module).scaled(c) for c, module in terms if c != 0.0]
    empty = ModuleState(LowRank.zeros(*terms[0][1].shape))
    total = empty.add(stack(parts)) if parts else empty
    return ModuleState(total.value, total.discarded + sum(abs(c) * module.discarded for c, module in terms))


def _sum(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    total = np.zeros(arrays[0].shape)
    for array in arrays:
        total += array
    return total
