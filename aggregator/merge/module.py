"""The merge of one module: a pure function of its offset, what was handed out of it, and what each device changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.accumulator import CappedSum, LosslessSum, add_product
from aggregator.merge.algebra import Factors, compress, stack
from aggregator.merge.bias import Bias, measure_bias
from aggregator.merge.cohort import Share
from aggregator.merge.cost import Form, choose_form
from aggregator.merge.delta import add_deltas
from aggregator.merge.leading import Leading, leading_of_factors, leading_of_matrix
from aggregator.merge.scratch import Scratch
from aggregator.merge.state import ModuleState, settle

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MergedModule", "merge_module"]


@dataclass(frozen=True, kw_only=True)
class MergedModule:
    """One module after a merge."""

    state: ModuleState
    """Its offset."""
    leading: Leading
    """What hand-outs are made of."""
    update_norm: float
    """Frobenius norm of what was added."""
    bias: Bias | None
    """The offset against its definition, where measuring that costs next to nothing; None: not measured."""


def merge_module(
    base: ModuleState,
    handed: tuple[NDArray[np.float32], NDArray[np.float32]],
    shares: Iterable[Share],
    *,
    width: int,
    step: float = 1.0,
    cap: int | None = None,
    scratch: Scratch | None = None,
) -> MergedModule:
    """``M' = M + η·Σ p_i D_i``, exact unless capped.

    Args:
        base: ``M``.
        handed: ``B̂₀`` ``[m, k]`` and ``A₀`` ``[k, n]``, as the codec rounded them.
        shares: What the devices changed, in canonical order; read once.
        width: ``Σ r_i``, an upper bound of the ranks in ``shares``.
        step: ``η``.
        cap: Rank that the offset is kept within, with a certificate of what that drops; None: it stays exact.
        scratch: Where large arrays lie; None: in memory.
    """
    scratch = scratch or Scratch()
    slots = handed[1].shape[0]
    if cap is not None:
        return _capped(base, handed, shares, step, cap, scratch)
    total = LosslessSum(base.shape, width + 2 * slots, scratch)
    add_deltas(total, handed, shares, step)
    increment = total.finish()
    if isinstance(increment, Factors) and not increment.width:
        return _unchanged(base, slots)
    if isinstance(increment, Factors) and not isinstance(base.value, np.ndarray):
        return _stacked(base, increment, slots, scratch)
    return _multiplied_out(base, increment, slots, scratch)


def _stacked(base: ModuleState, increment: Factors, slots: int, scratch: Scratch) -> MergedModule:
    whole = stack([base.factors(), increment])
    form = choose_form(whole.shape, whole.width, slots)
    if form is Form.MATRIX:
        return _multiplied_out(base, increment, slots, scratch)
    if form is Form.WHOLE:
        state = settle(whole, base.discarded, slots)
        bias = measure_bias(state.factors(), whole)
        return MergedModule(state=state, leading=state.leading(slots), update_norm=increment.norm(), bias=bias)
    leading, norm = leading_of_factors(whole, slots, base.known, since=whole.width - increment.width)
    state = ModuleState(whole, base.discarded, leading.top)
    return MergedModule(state=state, leading=leading, update_norm=norm, bias=None)


def _multiplied_out(
    base: ModuleState, increment: Factors | NDArray[np.float64], slots: int, scratch: Scratch
) -> MergedModule:
    if isinstance(increment, Factors):
        increment = np.matmul(increment.left, increment.right, out=scratch.empty(base.shape))
    norm = float(np.linalg.norm(increment))
    if isinstance(base.value, np.ndarray):
        increment += base.value
    else:
        add_product(increment, base.factors())
    leading = leading_of_matrix(increment, slots, base.known)
    state = ModuleState(increment, base.discarded, leading.top if leading.spectrum is None else None)
    return MergedModule(state=state, leading=leading, update_norm=norm, bias=None)


def _capped(
    base: ModuleState,
    handed: tuple[NDArray[np.float32], NDArray[np.float32]],
    shares: Iterable[Share],
    step: float,
    cap: int,
    scratch: Scratch,
) -> MergedModule:
    slots, total = handed[1].shape[0], CappedSum(base.shape, cap, scratch)
    add_deltas(total, handed, shares, step)
    increment = total.finish()
    if not increment.width:
        return _unchanged(base, slots)
    whole = compress(stack([base.factors(), increment]))
    dropped = total.discarded + whole.discarded + whole.value.tail_norm(cap)
    state = ModuleState(whole.value.truncate(cap), base.discarded + dropped)
    return MergedModule(state=state, leading=state.leading(slots), update_norm=increment.norm(), bias=None)


def _unchanged(base: ModuleState, slots: int) -> MergedModule:
    return MergedModule(state=base, leading=base.leading(slots), update_norm=0.0, bias=None)
