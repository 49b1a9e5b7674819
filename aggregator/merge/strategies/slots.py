"""What rules share that hold the model as LoRA factors, slot by slot, and average these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast, final

import numpy as np

from aggregator.merge import Factors, GlobalState, Increment, MergeError, ModuleState, make_handout
from aggregator.merge.module import add_increment
from aggregator.merge.strategies.interface import Requirement, Strategy
from aggregator.merge.strategies.reports import report_round, report_step
from aggregator.merge.strategies.trained import Pair, TrainedCohort
from aggregator.merge.tensor_file import prefixed, under, whole
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.merge import MergedModule, MergeReport, ModuleReport
    from aggregator.merge.strategies.interface import Property, RoundInput
    from aggregator.merge.tensor_file import Stored, Tensors
    from protocol.manifest import LowRankModule, Manifest

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


class SlotAverage(Strategy[SlotState], ABC):
    """``(B̂, A)' = (B̂, A) + η(mean − (B̂, A))``: a subclass says what the mean is.

    Dense tensors take the weighted mean of their changes.
    """

    fails: ClassVar[frozenset[Property]]
    requires: ClassVar[frozenset[Requirement]] = frozenset({Requirement.ONE_VERSION})

    @abstractmethod
    def average(self, cohort: TrainedCohort, module: LowRankModule, held: Pair) -> Pair:
        """The mean of one module.

        Args:
            cohort: The clients.
            module: Which.
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
    def open(self, state: SlotState, given: RoundInput) -> SlotMerge:
        """Moves the factors to their mean; see :meth:`Strategy.open`."""
        trained = TrainedCohort.of(given, self.requires)
        if max(trained.checked.ranks) > given.manifest.rank_max:
            raise MergeError(
                f"a client trained at rank {max(trained.checked.ranks)}, the manifest allows {given.manifest.rank_max}"
            )
        return SlotMerge(rule=self, state=state, trained=trained, step=given.step)

    @final
    def only(self, state: SlotState, manifest: Manifest, module: LowRankModule) -> SlotState:
        """The module's columns."""
        B, A = _factors(manifest, state.slots, module.name)
        return SlotState(slots=np.hstack([B.T, A]), dense={})

    @final
    def offset(self, state: SlotState, manifest: Manifest) -> GlobalState:
        """``B̂A``."""
        low_rank = {module.name: Factors(*_factors(manifest, state.slots, module.name)) for module in manifest.low_rank}
        return GlobalState.zeros(manifest).add(Increment(low_rank=low_rank, dense=state.dense))

    @final
    def tensors(self, state: SlotState) -> Tensors:
        """``slots`` and ``dense/NAME``."""
        return {**prefixed("dense", state.dense), "slots": state.slots}

    @final
    def of_tensors(self, tensors: Stored, manifest: Manifest) -> SlotState:
        """Reads what :meth:`tensors` told."""
        expected = {f"dense/{tensor.name}": tensor.shape for tensor in manifest.dense}
        expected["slots"] = (manifest.rank_max, Layout.of(manifest).width)
        if {name: value.shape for name, value in tensors.items()} != expected:
            raise MergeError("the stored slots are not of this run's manifest, or of another strategy")
        dense = under("dense", tensors)
        in_order = {tensor.name: whole(dense[tensor.name]) for tensor in manifest.dense}
        return SlotState(slots=whole(tensors["slots"]), dense=in_order)


@final
@dataclass(frozen=True, kw_only=True)
class SlotMerge:
    """``(B̂, A) + η(mean − (B̂, A))``, ready to be merged module by module."""

    rule: SlotAverage
    """Says what the mean is."""
    state: SlotState
    """The model."""
    trained: TrainedCohort
    """The clients."""
    step: float
    """``η``."""

    @property
    def manifest(self) -> Manifest:
        """The run's universe."""
        return self.trained.manifest

    def width(self, module: LowRankModule) -> int:
        """Terms of one module's sum, of state and cohort."""
        del module
        return self.manifest.rank_max + self.trained.width

    def merge_module(self, module: LowRankModule) -> tuple[ModuleState, ModuleReport]:
        """The next factors of one module, all ``rank_max`` slots of them."""
        held = _factors(self.manifest, self.state.slots, module.name)
        mean = self.rule.average(self.trained, module, held)
        B, A = (before + self.step * (to - before) for before, to in zip(held, mean, strict=True))
        before, after = (self._settled(module, Factors(*pair)) for pair in (held, (B, A)))
        return ModuleState(Factors(B, A)), report_step(module, before.state, after, self.trained, self.step)

    def finish(self, modules: Mapping[str, tuple[ModuleState, ModuleReport]]) -> tuple[SlotState, MergeReport]:
        """The next state; the dense tensors are merged here."""
        slots = np.empty_like(self.state.slots)
        for name, (value, _) in modules.items():
            B, A = _factors(self.manifest, slots, name)
            B[:], A[:] = value.factors().left, value.factors().right
        before = self.state.dense
        dense = self.trained.moved_dense(before, self.step)
        reports = tuple(modules[module.name][1] for module in self.manifest.low_rank)
        return SlotState(slots=slots, dense=dense), report_round(self.trained.checked, reports, before, dense)

    def _settled(self, module: LowRankModule, value: Factors) -> MergedModule:
        return add_increment(ModuleState.zeros(module), value.pruned(), self.trained.slots, self.trained.scratch)


def _factors(manifest: Manifest, slots: NDArray[np.float64], name: str) -> Pair:
    """Views of one module's factors; :meth:`Layout.factors` only slices, whatever the type."""
    return cast(Pair, Layout.of(manifest).factors(cast("NDArray[np.float32]", slots), name))


def _float32(values: NDArray[np.float64], name: str) -> NDArray[np.float32]:
    if values.size and float(np.abs(values).max()) > float(np.finfo(np.float32).max):
        raise MergeError(f"{name!r}: the state has grown beyond float32; the run has diverged")
    return values.astype(np.float32)
