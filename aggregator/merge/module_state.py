"""The exact offset of one linear map, in float64, as a value.

It is held as factors while they are smaller than the matrix, ``w(m+n) < m·n``, and as the matrix from then on; factors
are compressed where that costs next to nothing. Nothing is truncated to a rank unless a cap is asked for; what was
dropped, as rounding noise or by a cap, is summed up as a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from aggregator.merge.algebra import Factors, LowRank, compress, decompose, stack
from aggregator.merge.cost import Form, choose_form, fits_factors
from aggregator.merge.leading import Leading, leading_of_factors, leading_of_matrix, leading_of_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import LowRankModule

__all__ = ["ModuleState", "settle"]


@dataclass(frozen=True)
class ModuleState:
    """The exact offset of one linear map."""

    value: LowRank | Factors | NDArray[np.float64]
    """All singular triplets, a stack of factors, or the matrix ``[m, n]``: see :class:`~aggregator.merge.cost.Form`."""
    discarded: float = 0.0
    """Bound on the Frobenius norm of all that was ever dropped: as numerically zero, or by a cap."""
    top: LowRank | None = None
    """Leading triplets of a value that does not tell its own. They belong to the version: hand-outs are made of them,
    and the next version's are sought from them on."""

    @classmethod
    def zeros(cls, module: LowRankModule) -> Self:
        """No offset."""
        return cls(LowRank.zeros(module.out_features, module.in_features))

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        rows, columns = self.value.shape
        return rows, columns

    @property
    def width(self) -> int:
        """Rank of what is held: exact for triplets, an upper bound for the other forms."""
        if isinstance(self.value, LowRank):
            return self.value.rank
        return min(*self.shape, self.value.width) if isinstance(self.value, Factors) else min(self.shape)

    @property
    def known(self) -> LowRank | None:
        """Singular triplets that need no work."""
        return self.value if isinstance(self.value, LowRank) else self.top

    @cached_property
    def svd(self) -> LowRank:
        """All singular triplets; for a large module that is not held by them, seconds to minutes of work."""
        if isinstance(self.value, LowRank):
            return self.value
        return (compress(self.value) if isinstance(self.value, Factors) else decompose(self.value)).value

    def factors(self) -> Factors:
        """The offset as a product; a matrix as itself times the identity."""
        if isinstance(self.value, Factors):
            return self.value
        return self.value.factors() if isinstance(self.value, LowRank) else Factors(self.value, np.eye(self.shape[1]))

    def leading(self, slots: int) -> Leading:
        """The best approximation of a rank, and what is known of the rest. Lower ranks are prefixes of one call's."""
        if isinstance(self.value, LowRank):
            return leading_of_whole(self.value, slots)
        if isinstance(self.value, Factors):
            return leading_of_factors(self.value, slots, self.top)[0]
        return leading_of_matrix(self.value, slots, self.top)

    def handed_out(self, slots: int) -> LowRank:
        """The leading triplets of this version: those that belong to it if there are enough, else found now."""
        if self.top is not None and self.top.rank >= slots:
            return self.top.truncate(slots)
        return self.leading(slots).top

    def norm(self) -> float:
        """Frobenius norm."""
        if isinstance(self.value, Factors):
            return self.value.norm()
        return self.value.norm if isinstance(self.value, LowRank) else float(np.linalg.norm(self.value))

    def scaled(self, factor: float) -> ModuleState:
        """``c`` times the offset, without leading triplets of its own."""
        if factor == 1.0:
            return self
        if factor == 0.0:
            return ModuleState(LowRank.zeros(*self.shape))
        value = self.value * factor if isinstance(self.value, np.ndarray) else self.factors().scaled(factor)
        return ModuleState(value, abs(factor) * self.discarded)

    def add(self, increment: Factors) -> ModuleState:
        """The exact sum, in the form that the cost model picks."""
        increment = increment.pruned()
        if not increment.width:
            return self
        if isinstance(self.value, np.ndarray):
            return ModuleState(self.value + increment.dense(), self.discarded)
        return settle(stack([self.factors(), increment]), self.discarded)


def settle(stacked: Factors, discarded: float = 0.0, slots: int = 1) -> ModuleState:
    """A stack of factors in the form that the cost model picks, without its leading triplets.

    Args:
        stacked: Without a term that is zero.
        discarded: As in :class:`ModuleState`.
        slots: How many leading triplets will be wanted.
    """
    form = choose_form(stacked.shape, stacked.width, slots)
    if form is Form.FACTORS:
        return ModuleState(stacked, discarded)
    if form is Form.WHOLE:
        whole = compress(stacked)
        if fits_factors(stacked.shape, whole.value.rank):
            return ModuleState(whole.value, discarded + whole.discarded)
    return ModuleState(stacked.dense(), discarded)
