"""Between a run's state and a PEFT adapter: export at any rank, and a warm start from somebody's adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aggregator.adapters.peft_adapter import PeftAdapter, PeftModule
from aggregator.merge import GlobalState, Increment, MergeError, slot_factors
from protocol.manifest import Pooling, TaskKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import DenseTensor, Manifest

__all__ = ["adapter_from_state", "beyond_peft", "state_from_adapter"]

_TASK_TYPES = {
    TaskKind.CLASSIFICATION: "SEQ_CLS",
    TaskKind.REGRESSION: "SEQ_CLS",
    TaskKind.EMBEDDING: "FEATURE_EXTRACTION",
    TaskKind.CAUSAL_LM: "CAUSAL_LM",
    TaskKind.IMAGE_CLASSIFICATION: None,
}
"""PEFT has none for images: it then wraps any model, and saves the head because ``modules_to_save`` says so."""
_HEADS = ("classifier", "score")
"""What PEFT saves by itself for ``SEQ_CLS``, and then expects to find in the folder."""


def beyond_peft(manifest: Manifest) -> str | None:
    """Why PEFT's LoRA folder cannot hold the result of a run; None: it can."""
    if not manifest.low_rank:
        return f"method {manifest.method!r} has no low-rank modules, and PEFT no LoRA adapter without one"
    task = manifest.task
    if manifest.dense and task.pooling is not Pooling.MODEL:
        return f"the head on {task.pooling} pooling is no part of {manifest.base.architecture}: PEFT would leave it out"
    if of_base := next((tensor.name for tensor in manifest.dense if tensor.initializer is None), None):
        return (
            f"{of_base!r} is a tensor of the base model, whose values this host does not have,"
            " and a PEFT folder holds values, not offsets"
        )
    return None


def adapter_from_state(state: GlobalState, manifest: Manifest, rank: int, *, seed: int = 0) -> PeftAdapter:
    """The best adapter of a rank, ready to write.

    Slots beyond a module's own rank get fresh rows of ``A`` and ``B = 0``: they change nothing, and whoever trains on
    finds them alive.

    Args:
        state: What to export.
        manifest: The run's universe.
        rank: LoRA rank, at least 1.
        seed: Seed of the fresh rows.

    Raises:
        MergeError: The rank is no rank, or PEFT's folder cannot hold the run (:func:`beyond_peft`).
    """
    if rank < 1:
        raise MergeError(f"an adapter has at least rank 1, got {rank}")
    if reason := beyond_peft(manifest):
        raise MergeError(f"{reason}: export in the format 'tributary', which holds every run")
    dense = {tensor.name: _value(tensor, state.dense[tensor.name]) for tensor in manifest.dense}
    to_save = _modules_to_save(dense)
    return PeftAdapter(
        modules={
            module.name: PeftModule(*slot_factors(state.low_rank[module.name].svd, rank, module.name, seed))
            for module in manifest.low_rank
        },
        dense=dense,
        modules_to_save=to_save,
        base_model=manifest.base.name,
        task_type=_task_type(manifest, to_save),
    )


def state_from_adapter(adapter: PeftAdapter, manifest: Manifest) -> GlobalState:
    """The state of a run that starts where an adapter is. Trainables that it does not have start at zero.

    Args:
        adapter: Any rank.
        manifest: The run's universe.

    Raises:
        MergeError: The adapter has a module or tensor that the manifest does not, or in another shape; or a tensor
            of the base itself, whose offset is not known here. All are named.
    """
    faults = [*_module_faults(adapter, manifest), *_dense_faults(adapter, manifest)]
    if faults:
        raise MergeError("the adapter does not fit this run: " + "; ".join(faults))
    initial = {tensor.name: _initial(tensor) for tensor in manifest.dense}
    return GlobalState.zeros(manifest).add(
        Increment(
            low_rank={name: module.factors() for name, module in adapter.modules.items()},
            dense={name: value.astype(np.float64) - initial[name] for name, value in adapter.dense.items()},
        )
    )


def _initial(tensor: DenseTensor) -> NDArray[np.float64]:
    if tensor.initializer is None:
        raise MergeError(
            f"{tensor.name!r} is a tensor of the base model, whose values this host does not have;"
            " a PEFT folder can hold it only where the base model is at hand"
        )
    return tensor.initializer.values(tensor.shape).astype(np.float64)


def _value(tensor: DenseTensor, offset: NDArray[np.float64]) -> NDArray[np.float32]:
    return (_initial(tensor) + offset).astype(np.float32)


def _modules_to_save(names: dict[str, NDArray[np.float32]]) -> tuple[str, ...]:
    """The modules that own the tensors; a head that PEFT wraps as a whole is named as a whole."""
    owners = {name.rpartition(".")[0] for name in names}
    return tuple(sorted({owner.split(".")[0] if owner.split(".")[0] in _HEADS else owner for owner in owners}))


def _task_type(manifest: Manifest, to_save: tuple[str, ...]) -> str | None:
    task_type = _TASK_TYPES[manifest.task.kind]
    return None if task_type == "SEQ_CLS" and not set(to_save) & set(_HEADS) else task_type


def _module_faults(adapter: PeftAdapter, manifest: Manifest) -> list[str]:
    shapes = {module.name: (module.out_features, module.in_features) for module in manifest.low_rank}
    faults = []
    for name, module in adapter.modules.items():
        got = (module.B.shape[0], module.A.shape[1])
        if name not in shapes or module.embedding:
            faults.append(f"{name!r} is not a low-rank module of the manifest")
        elif got != shapes[name]:
            faults.append(f"{name!r} has shape {got}, the manifest {shapes[name]}")
    return faults


def _dense_faults(adapter: PeftAdapter, manifest: Manifest) -> list[str]:
    shapes = {tensor.name: tensor.shape for tensor in manifest.dense}
    return [
        f"{name!r} has shape {value.shape}, the manifest {shapes.get(name, 'no such tensor')}"
        for name, value in adapter.dense.items()
        if shapes.get(name) != value.shape
    ]
