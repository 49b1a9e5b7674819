"""What rules share that hold the model as LoRA factors, slot by slot, and average these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast, final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aggregator.merge import Factors, GlobalState, Increment, MergeError, make_handout
from aggregator.merge.strategies.cohort import Pair, TrainedCohort, check_step
from aggregator.merge.strategies.reports import report_step
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.merge import ClientUpdate, MergeReport
    from aggregator.merge.strategies.interface import Property, Requirement
    from protocol.manifest import Manifest

__all__ = ["SlotAverage", "SlotState"]


@dataclass(frozen=True, kw_only=True)
class SlotState:
    """The model as one adapter: ``rank_max`` slots of ``B̂`` and ``A``, and offsets of dense tensors.

    Unlike a product, it has a gauge: ``B̂G, G⁻¹A`` is another state and the same model.
    """

    slots: NDArray[np.float64]
    """``[rank_max, Σ(m+n)]``, slot-major."""
    dense: Mapping[str, NDArray[np.float64]]
    """By tensor, in manifest order."""


class SlotAverage(ABC):
    """``(B̂, A)' = (B̂, A) + η(mean − (B̂, A))``: a subclass says what the mean is.

    Dense tensors take the weighted mean of their changes.
    """

    fails: ClassVar[frozenset[Property]]
    requires: ClassVar[frozenset[Requirement]] = frozenset()

    @abstractmethod
    def average(self, cohort: TrainedCohort, name: str, held: Pair) -> Pair:
        """The mean of one module.

        Args:
            cohort: The clients.
            name: Module.
            held: ``B̂ [m, rank_max]`` and ``A [rank_max, n]`` of the state, float64.

        Returns:
            Of the same shapes.
        """

    @final
    def start(self, manifest: Manifest, offset: GlobalState, seed: int) -> SlotState:
        """The offset's best adapter, which must be all of it; spare slots get fresh rows of ``A``.

        Raises:
            MergeError: A module's offset has more than ``rank_max`` directions.
        """
        for name, module in offset.low_rank.items():
            if module.svd.rank > manifest.rank_max:
                raise MergeError(
                    f"{name!r}: the start has rank {module.svd.rank}, a strategy that averages factors holds "
                    f"{manifest.rank_max}; use 'delta', or a start of lower rank"
                )
        slots = make_handout(offset, manifest, manifest.rank_max, seed).slots.astype(np.float64)
        return SlotState(slots=slots, dense=dict(offset.dense))

    @final
    def handout(self, state: SlotState, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
        """The state's slots; those beyond ``rank_max`` get fresh rows of ``A`` and ``B̂ = 0``."""
        spare = make_handout(GlobalState.zeros(manifest), manifest, slots, seed).slots
        held = _float32(state.slots[:slots], "slots")
        dense = {name: _float32(value, name) for name, value in state.dense.items()}
        return AdapterTensors(dense, np.concatenate([held, spare[len(held) :]]))

    @final
    def merge(
        self,
        state: SlotState,
        manifest: Manifest,
        handout: AdapterTensors,
        updates: Iterable[ClientUpdate],
        *,
        step: float = 1.0,
    ) -> tuple[SlotState, MergeReport]:
        """Moves the factors to their mean; see :meth:`Strategy.merge`."""
        check_step(step)
        cohort = TrainedCohort.of(manifest, handout, updates, self.requires)
        if max(cohort.ranks) > manifest.rank_max:
            raise MergeError(f"a client trained at rank {max(cohort.ranks)}, the manifest allows {manifest.rank_max}")
        slots = state.slots.copy()
        for module in manifest.low_rank:
            held, target = _factors(manifest, state.slots, module.name), _factors(manifest, slots, module.name)
            for value, before, mean in zip(target, held, self.average(cohort, module.name, held), strict=True):
                value += step * (mean - before)
        dense = {name: value + step * cohort.dense_change(name) for name, value in state.dense.items()}
        merged = SlotState(slots=slots, dense=dense)
        return merged, report_step(self.offset(state, manifest), self.offset(merged, manifest), cohort, step)

    @final
    def offset(self, state: SlotState, manifest: Manifest) -> GlobalState:
        """``B̂A``."""
        low_rank = {module.name: Factors(*_factors(manifest, state.slots, module.name)) for module in manifest.low_rank}
        return GlobalState.zeros(manifest).add(Increment(low_rank=low_rank, dense=state.dense))

    @final
    def to_bytes(self, state: SlotState) -> bytes:
        """Safetensors: ``slots`` and ``dense/NAME``, float64."""
        dense = {f"dense/{name}": np.ascontiguousarray(value) for name, value in state.dense.items()}
        return save({**dense, "slots": np.ascontiguousarray(state.slots)})

    @final
    def from_bytes(self, data: bytes, manifest: Manifest) -> SlotState:
        """Reads what :meth:`to_bytes` wrote."""
        try:
            tensors = load(data)
        except (SafetensorError, KeyError) as error:
            raise MergeError(f"the stored slots cannot be read: {error}") from error
        expected = {f"dense/{tensor.name}": tensor.shape for tensor in manifest.dense}
        expected["slots"] = (manifest.rank_max, Layout.of(manifest).width)
        got = {name: value.shape for name, value in tensors.items() if value.dtype == np.float64}
        if got != expected or len(got) != len(tensors):
            raise MergeError("the stored slots are not of this run's manifest, or of another strategy")
        if not all(np.isfinite(value).all() for value in tensors.values()):
            raise MergeError("the stored slots hold NaN or infinite values")
        return SlotState(
            slots=tensors["slots"], dense={tensor.name: tensors[f"dense/{tensor.name}"] for tensor in manifest.dense}
        )


def _factors(manifest: Manifest, slots: NDArray[np.float64], name: str) -> Pair:
    """Views of one module's factors; :meth:`Layout.factors` only slices, whatever the type."""
    return cast(Pair, Layout.of(manifest).factors(cast("NDArray[np.float32]", slots), name))


def _float32(values: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    if values.size and float(np.abs(values).max()) > float(np.finfo(np.float32).max):
        raise MergeError(f"{name!r}: the state has grown beyond float32; the run has diverged")
    return values.astype(np.float32)
