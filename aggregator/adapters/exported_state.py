"""Between a run's state and an exported adapter: export at any rank, and a warm start from what a run came to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge import Factors, GlobalState, Increment, MergeError, make_handout
from protocol import limits
from protocol.exported import ExportedAdapter
from protocol.payload import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import DenseTensor, Manifest

__all__ = ["exported_from_state", "state_from_exported"]


def exported_from_state(state: GlobalState, manifest: Manifest, rank: int, *, seed: int = 0) -> ExportedAdapter:
    """The best adapter of a rank, ready to write: what a device of that rank is handed, but not rounded to a codec.

    Args:
        state: What to export.
        manifest: The run's universe.
        rank: LoRA rank, ``1..4096``; without a meaning where the method has no low-rank modules.
        seed: Seed of the rows of ``A`` in slots that the state does not reach.

    Raises:
        MergeError: The rank is no rank, or a value does not fit float32.
    """
    if not 1 <= rank <= limits.RANK_MAX:
        raise MergeError(f"an adapter has a rank in 1..{limits.RANK_MAX}, got {rank}")
    return ExportedAdapter(manifest, make_handout(state, manifest, rank, seed))


def state_from_exported(exported: ExportedAdapter, manifest: Manifest) -> GlobalState:
    """The state of a run that starts where another one ended. Trainables that the other did not have start at zero.

    Args:
        exported: Of any rank, and of a run on the same base.
        manifest: The universe of the run that starts.

    Raises:
        MergeError: It is of another base, or has a trainable or a setting that this run does not have. All are named.
    """
    if faults := list(_faults(exported.manifest, manifest)):
        raise MergeError("the exported run does not fit this run: " + "; ".join(faults))
    layout, tensors = Layout.of(exported.manifest), exported.tensors
    initial = {tensor.name: _initial(tensor) for tensor in manifest.dense}
    low_rank = {}
    for module in layout.low_rank:
        b, a = layout.factors(tensors.slots, module.name)
        low_rank[module.name] = Factors(b.astype(np.float64), a.astype(np.float64))
    dense = {t.name: _initial(t) + tensors.dense[t.name] - initial[t.name] for t in layout.dense}
    return GlobalState.zeros(manifest).add(Increment(low_rank=low_rank, dense=dense))


def _initial(tensor: DenseTensor) -> NDArray[np.float64]:
    """Where a tensor starts, or zeros where that is the base's to say: it cancels out between runs on one base."""
    if tensor.initializer is None:
        return np.zeros(tensor.shape)
    return tensor.initializer.values(tensor.shape).astype(np.float64)


def _faults(exported: Manifest, manifest: Manifest) -> Iterator[str]:
    if exported.base.fingerprint != manifest.base.fingerprint:
        yield (
            f"it tunes {exported.base.name} of fingerprint {exported.base.fingerprint[:12]}…, this one "
            f"{manifest.base.name} of {manifest.base.fingerprint[:12]}…: offsets from one base mean nothing on another"
        )
    if exported.method == manifest.method and exported.method_options != manifest.method_options:
        yield (
            f"method {exported.method!r} has the settings {dict(exported.method_options)} there and "
            f"{dict(manifest.method_options)} here"
        )
    modules = set(manifest.low_rank)
    for module in exported.low_rank:
        if module not in modules:
            yield f"{module.name!r} of {module.out_features} x {module.in_features} is no low-rank module of this run"
    tensors = {_kind(tensor) for tensor in manifest.dense}
    for tensor in exported.dense:
        if _kind(tensor) not in tensors:
            origin = "the base's own" if tensor.initializer is None else "fresh"
            yield f"{tensor.name!r} of shape {tensor.shape}, {origin}, is no dense tensor of this run"


def _kind(tensor: DenseTensor) -> tuple[str, tuple[int, ...], bool]:
    return tensor.name, tensor.shape, tensor.initializer is None
