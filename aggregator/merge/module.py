"""The merge of one module: a pure function of its offset, what was handed out of it, and what each device changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from aggregator.merge.accumulator import CappedSum, LosslessSum, add_product
from aggregator.merge.algebra import Factors, compress, stack
from aggregator.merge.bias import Bias, measure_bias
from aggregator.merge.cohort import Share
from aggregator.merge.cost import Form, choose_form
from aggregator.merge.delta import Sum, add_deltas
from aggregator.merge.leading import Leading, leading_of_factors, leading_of_matrix
from aggregator.merge.module_state import ModuleState, settle
from aggregator.merge.scratch import Scratch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Changes", "MergedModule", "add_increment", "merge_module"]


class Changes(NamedTuple):
    """What devices that were handed one version changed in a module."""

    handed: tuple[NDArray[np.float32], NDArray[np.float32]]
    """``B̂_v`` ``[m, k]`` and ``A_v`` ``[k, n]``, as the codec rounded them."""
    shares: Iterable[Share]
    """Device by device, in canonical order."""


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
    stale: Iterable[Changes] = (),
) -> MergedModule:
    """``M' = M + η·Σ p_i D_i``, exact unless capped.

    Args:
        base: ``M``.
        handed: ``B̂₀`` ``[m, k]`` and ``A₀`` ``[k, n]``, as the codec rounded them.
        shares: What the devices changed, in canonical order; read once.
        width: Upper bound of the ranks in ``shares``, ``Σ r_i``; with ``stale``, of those there too, and of the slots
            of its hand-outs counted twice.
        step: ``η``.
        cap: Rank that the offset is kept within, with a certificate of what that drops; None: it stays exact.
        scratch: Where large arrays lie; None: in memory.
        stale: What devices changed that were handed earlier versions, the latest first; read once, one by one.
    """
    scratch = scratch or Scratch()
    slots, changes = handed[1].shape[0], chain([Changes(handed, shares)], stale)
    if cap is not None:
        return _capped(base, changes, slots, step, cap, scratch)
    width += 2 * slots
    return add_increment(base, _increment(base.shape, changes, width, step, scratch), slots, scratch)


def add_increment(
    base: ModuleState, increment: Factors | NDArray[np.float64], slots: int, scratch: Scratch
) -> MergedModule:
    """``M + ΔM``, in the form that the cost model picks, and what hand-outs are made of.

    Args:
        base: ``M``.
        increment: ``ΔM``, factors without a term that is zero, or a matrix that may be written to.
        slots: Slots that will be handed out.
        scratch: Where large arrays lie.
    """
    if isinstance(increment, Factors) and not increment.width:
        return _unchanged(base, slots)
    if isinstance(increment, Factors) and not isinstance(base.value, np.ndarray):
        return _stacked(base, increment, slots, scratch)
    return _multiplied_out(base, increment, slots, scratch)


def _increment(
    shape: tuple[int, int], changes: Iterable[Changes], width: int, step: float, scratch: Scratch
) -> Factors | NDArray[np.float64]:
    total = LosslessSum(shape, width, scratch)  # its buffers go with this call unless they are the factors
    _add(total, changes, step)
    return total.finish()


def _add(total: Sum, changes: Iterable[Changes], step: float) -> None:
    """Each change counts against what its own device was handed, so versions add up as cohorts do."""
    for handed, shares in changes:
        add_deltas(total, handed, shares, step)


def _stacked(base: ModuleState, increment: Factors, slots: int, scratch: Scratch) -> MergedModule:
    before = base.factors()
    form = choose_form(base.shape, before.width + increment.width, slots)
    if form is Form.MATRIX:
        return _multiplied_out(base, increment, slots, scratch)
    whole = stack([before, increment])
    if form is Form.WHOLE:
        state = settle(whole, base.discarded, slots)
        bias = measure_bias(state.factors(), whole)
        return MergedModule(state=state, leading=state.leading(slots), update_norm=increment.norm(), bias=bias)
    leading, norm = leading_of_factors(whole, slots, base.known, since=whole.width - increment.width, scratch=scratch)
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
    leading = leading_of_matrix(increment, slots, base.known, scratch)
    state = ModuleState(increment, base.discarded, leading.top if leading.spectrum is None else None)
    return MergedModule(state=state, leading=leading, update_norm=norm, bias=None)


def _capped(
    base: ModuleState, changes: Iterable[Changes], slots: int, step: float, cap: int, scratch: Scratch
) -> MergedModule:
    total = CappedSum(base.shape, cap, scratch)
    _add(total, changes, step)
    increment = total.finish()
    if not increment.width:
        return _unchanged(base, slots)
    whole = compress(stack([base.factors(), increment]))
    dropped = total.discarded + whole.discarded + whole.value.tail_norm(cap)
    state = ModuleState(whole.value.truncate(cap), base.discarded + dropped)
    return MergedModule(state=state, leading=state.leading(slots), update_norm=increment.norm(), bias=None)


def _unchanged(base: ModuleState, slots: int) -> MergedModule:
    return MergedModule(state=base, leading=base.leading(slots), update_norm=0.0, bias=None)
