"""What rules share that hold the model as a product and put an average of the clients' models in its place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge import Factors, GlobalState, Increment, make_handout
from aggregator.merge.strategies.cohort import TrainedCohort, check_step
from aggregator.merge.strategies.reports import report_step
from aggregator.merge.vectors import combine

if TYPE_CHECKING:
    from aggregator.merge import ClientUpdate, MergeReport
    from aggregator.merge.strategies.interface import Property, Requirement
    from protocol.manifest import Manifest
    from protocol.payload import AdapterTensors

__all__ = ["ProductAverage"]


class ProductAverage(ABC):
    """``M' = M + η(Ŵ − M)``: a subclass says what ``Ŵ`` is. Dense tensors take the weighted mean of their changes."""

    fails: ClassVar[frozenset[Property]]
    requires: ClassVar[frozenset[Requirement]] = frozenset()

    @abstractmethod
    def average(self, cohort: TrainedCohort, name: str) -> Factors:
        """``Ŵ`` of one module, as stacked factors."""

    @final
    def start(self, manifest: Manifest, offset: GlobalState, seed: int) -> GlobalState:
        """The offset itself."""
        del manifest, seed
        return offset

    @final
    def handout(self, state: GlobalState, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
        """The best approximation of every rank."""
        return make_handout(state, manifest, slots, seed)

    @final
    def merge(
        self,
        state: GlobalState,
        manifest: Manifest,
        handout: AdapterTensors,
        updates: Iterable[ClientUpdate],
        *,
        step: float = 1.0,
    ) -> tuple[GlobalState, MergeReport]:
        """Takes the average in the place of the state; see :meth:`Strategy.merge`."""
        check_step(step)
        cohort = TrainedCohort.of(manifest, handout, updates, self.requires)
        average = GlobalState.zeros(manifest).add(
            Increment(
                low_rank={module.name: self.average(cohort, module.name) for module in manifest.low_rank},
                dense={name: value + cohort.dense_change(name) for name, value in state.dense.items()},
            )
        )
        merged = average if step == 1.0 else combine([(1.0 - step, state), (step, average)])
        return merged, report_step(state, merged, cohort, step)

    @final
    def offset(self, state: GlobalState, manifest: Manifest) -> GlobalState:
        """The state itself."""
        del manifest
        return state

    @final
    def to_bytes(self, state: GlobalState) -> bytes:
        """As :meth:`GlobalState.to_bytes`."""
        return state.to_bytes()

    @final
    def from_bytes(self, data: bytes, manifest: Manifest) -> GlobalState:
        """As :meth:`GlobalState.from_bytes`."""
        return GlobalState.from_bytes(data, manifest)
