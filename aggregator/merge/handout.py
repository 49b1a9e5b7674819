"""What a device is given: the best adapter of every rank, as one slot-major block whose prefixes are the lower ranks.

``M = U S Vᵀ`` becomes ``A = c·Vᵀ`` and ``B̂ = U·S/c`` with ``c = 1/√3``. Rows of ``A`` then have the norm of PEFT's own
start, so a learning rate means what it means in plain LoRA, and a slot whose singular value is small still has a
gradient. The balanced split ``√S`` has dead saddles there, ``A = S·Vᵀ`` starves ``A``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.algebra import LowRank
from aggregator.merge.errors import MergeError
from aggregator.merge.leading import Leading
from protocol.initializers import fresh_rows
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.merge.state import GlobalState
    from protocol.manifest import Manifest

__all__ = ["ROW_NORM", "handout_errors", "make_handout", "slot_factors"]

ROW_NORM = 1.0 / math.sqrt(3.0)
"""``c``: mean row norm of a uniform Kaiming start with ``a = √5``, which is PEFT's for ``A``."""


def make_handout(state: GlobalState, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
    """The adapter of ``slots`` slots that is closest to the state; its first ``r`` slots are that of rank ``r``.

    Args:
        state: What to hand out.
        manifest: The run's universe.
        slots: Slots per module, at least 1; those beyond a module's rank get fresh rows of ``A`` and ``B̂ = 0``.
        seed: Seed of the fresh rows.

    Returns:
        float32, in the layout of the whole manifest. Updates are merged against these values *as the codec rounds
        them*: encode, decode, and pass on what came back.

    Raises:
        MergeError: No slot is asked for, or a value does not fit float32.
    """
    if slots < 1:
        raise MergeError(f"a hand-out needs at least one slot, got {slots}")
    layout = Layout.of(manifest)
    tensors = layout.zeros(slots)
    for module in manifest.low_rank:
        B, A = layout.factors(tensors.slots, module.name)
        B[:], A[:] = slot_factors(state.low_rank[module.name].handed_out(slots), slots, module.name, seed)
    dense = {name: _float32(value, name) for name, value in state.dense.items()}
    return AdapterTensors(dense, _float32(tensors.slots, "slots"))


def slot_factors(matrix: LowRank, slots: int, name: str, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One module's slots.

    Args:
        matrix: Its offset.
        slots: How many.
        name: Module name, which picks the stream of the fresh rows.
        seed: Seed of the fresh rows.

    Returns:
        ``B̂`` ``[m, slots]`` and ``A`` ``[slots, n]``.
    """
    rows, columns = matrix.shape
    top = matrix.truncate(slots)
    B = np.zeros((rows, slots), np.float32)
    A = np.empty((slots, columns), np.float32)
    B[:, : top.rank] = _float32(top.U * (top.S / ROW_NORM), name)
    A[: top.rank] = top.Vt * ROW_NORM
    A[top.rank :] = fresh_rows(seed, name, range(top.rank, slots), columns)
    return B, A


def handout_errors(matrix: LowRank | Leading, ranks: Iterable[int]) -> dict[int, float]:
    """``‖M − T_r‖ / ‖M‖`` for each rank: the share of the state that a device of that rank does not see.

    Args:
        matrix: ``M``, or its leading triplets, at least as many as the highest rank.
        ranks: The ranks that are handed out.

    Returns:
        By rank, ascending; 0 where there is nothing to miss.
    """
    return {rank: matrix.tail_norm(rank) / matrix.norm if matrix.norm else 0.0 for rank in sorted(set(ranks))}


def _float32(values: NDArray[np.floating], name: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    if not np.isfinite(small).all():
        raise MergeError(f"{name!r}: the state has grown beyond float32; the run has diverged")
    return small
