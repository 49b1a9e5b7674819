"""Merges PEFT LoRA folders of any ranks, α and rsLoRA in product space, without a federation around them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aggregator.adapters.peft_adapter import PeftAdapter, PeftModule
from aggregator.adapters.peft_folder import read_peft_folder, write_peft_folder
from aggregator.merge import (
    DenseReport,
    MergeError,
    MergeReport,
    ModuleReport,
    ModuleState,
    compress,
    report_module,
    slot_factors,
    stack,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["merge_adapters", "merge_folders"]


def merge_folders(
    folders: Sequence[Path],
    weights: Sequence[float] | None,
    rank: int | None,
    out: Path,
    *,
    overwrite: bool = False,
) -> MergeReport:
    """Writes the best adapter of a rank for ``Σ p_i s_i B_i A_i`` over the folders.

    Args:
        folders: PEFT LoRA folders, at least one.
        weights: One positive number each, normalised to sum 1; None: all alike.
        rank: LoRA rank of the result; None: each module's own exact rank.
        out: Folder to write.
        overwrite: Replace ``out`` if it is not empty.

    Returns:
        What came of it: per module rank, norm and what the truncation left out.

    Raises:
        MergeError: The weights or rank make no sense, or the folders do not belong together.
        AdapterError: A folder cannot be read, or the result not be written.
    """
    adapters = [read_peft_folder(folder) for folder in folders]
    merged, report = merge_adapters(adapters, weights, rank)
    write_peft_folder(out, merged, overwrite=overwrite)
    return report


def merge_adapters(
    adapters: Sequence[PeftAdapter], weights: Sequence[float] | None, rank: int | None
) -> tuple[PeftAdapter, MergeReport]:
    """:func:`merge_folders` without the files.

    Args:
        adapters: What to merge, at least one. A module that one of them lacks counts as zero there.
        weights: As in :func:`merge_folders`.
        rank: As in :func:`merge_folders`.

    Raises:
        MergeError: As :func:`merge_folders`.
    """
    if rank is not None and rank < 1:
        raise MergeError(f"an adapter has at least rank 1, got {rank}")
    _check_alike(adapters)
    base = _shared_base(adapters)
    shares = _shares(weights, len(adapters))
    modules, reports = {}, []
    for name in sorted({name for adapter in adapters for name in adapter.modules}):
        modules[name], report = _merge_module(name, adapters, shares, rank)
        reports.append(report)
    dense = {name: _mean([adapter.dense[name] for adapter in adapters], shares) for name in adapters[0].dense}
    merged = replace(
        adapters[0],
        modules=modules,
        dense={name: value.astype(np.float32) for name, value in dense.items()},
        base=base,
        # PEFT turns the flag round where the layer says otherwise, so it differs between adapters of one GPT-2.
        fan_in_fan_out=any(adapter.fan_in_fan_out for adapter in adapters),
        source="the merged adapter",
    )
    norms = {name: float(np.linalg.norm(value)) for name, value in dense.items()}
    return merged, MergeReport(
        clients=len(adapters),
        total_weight=float(len(adapters) if weights is None else sum(weights)),
        modules=tuple(reports),
        dense=tuple(DenseReport(name=name, norm=norm, update_norm=norm) for name, norm in norms.items()),
    )


def _merge_module(
    name: str, adapters: Sequence[PeftAdapter], shares: Sequence[float], rank: int | None
) -> tuple[PeftModule, ModuleReport]:
    found = [(share, a.modules[name]) for share, a in zip(shares, adapters, strict=True) if name in a.modules]
    if uneven := _uneven((a.source, a.modules[name].kind) for a in adapters if name in a.modules):
        raise MergeError(f"module {name!r} differs in shape or kind ({uneven}); are the bases the same?")
    merged = compress(stack(module.factors().scaled(share) for share, module in found))
    state = ModuleState(merged.value, merged.discarded)
    slots = max(1, merged.value.rank) if rank is None else rank
    B, A = slot_factors(merged.value, slots, name, seed=0)
    return PeftModule(B, A, found[0][1].embedding), report_module(name, state, merged.value.norm, [slots])


def _mean(values: Sequence[NDArray[np.floating]], shares: Sequence[float]) -> NDArray[np.float64]:
    mean = np.zeros(values[0].shape)
    for share, value in zip(shares, values, strict=True):
        mean += share * value.astype(np.float64)
    return mean


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count:
        raise MergeError(f"expected {count} weights, one per folder, got {len(weights)}")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise MergeError(f"weights must be positive and finite, got {list(weights)}")
    return [weight / math.fsum(weights) for weight in weights]


def _check_alike(adapters: Sequence[PeftAdapter]) -> None:
    """Raises unless all are adapters of one base for one task, with the same dense tensors."""
    if not adapters:
        raise MergeError("nothing to merge: name at least one folder")
    for what in ("base_model", "task_type"):
        if uneven := _uneven((adapter.source, getattr(adapter, what)) for adapter in adapters):
            raise MergeError(
                f"the adapters differ in {what} ({uneven});"
                " where they mean the same, make their adapter_config.json say so"
            )
    for name in sorted({name for adapter in adapters for name in adapter.dense}):
        if uneven := _uneven((a.source, a.dense[name].shape if name in a.dense else None) for a in adapters):
            raise MergeError(
                f"modules_to_save are averaged only where all adapters have them alike; {name!r} is uneven ({uneven})"
            )


def _shared_base(adapters: Sequence[PeftAdapter]) -> dict[str, NDArray[np.float32]]:
    """The copies of the base's embeddings that came along: they are no part of the merge, but must be the same."""
    base: dict[str, NDArray[np.float32]] = {}
    for adapter in adapters:
        for name, value in adapter.base.items():
            if not np.array_equal(base.setdefault(name, value), value):
                raise MergeError(
                    f"{adapter.source}: its copy of the base's {name!r} is not that of the folders before it; if the"
                    " bases are the same, save the adapters with save_embedding_layers=False"
                )
    return base


def _uneven(found: Iterable[tuple[str, object]]) -> str:
    """Who has what, if it is not the same everywhere."""
    found = list(found)
    return ", ".join(f"{source}: {value}" for source, value in found) if len({value for _, value in found}) > 1 else ""
