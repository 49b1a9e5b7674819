"""What rules share that hold the model as a product, and put an average of the clients' in its place or add it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge import GlobalState, MergeReport, ModuleReport, ModuleState
from aggregator.merge.accumulator import LosslessSum
from aggregator.merge.module import add_increment
from aggregator.merge.strategies.interface import Requirement, Strategy
from aggregator.merge.strategies.orders import Order, make_ordered_handout
from aggregator.merge.strategies.reports import report_round, report_step
from aggregator.merge.strategies.trained import TrainedCohort

if TYPE_CHECKING:
    from aggregator.merge.strategies.interface import Property, RoundInput
    from aggregator.merge.strategies.trained import Pair
    from aggregator.merge.tensor_file import Stored, Tensors
    from protocol.manifest import LowRankModule, Manifest
    from protocol.payload import AdapterTensors

__all__ = ["ProductAverage", "ProductMerge"]


class ProductAverage(Strategy[GlobalState], ABC):
    """``M' = c·M + η·Ŵ``: a subclass says what ``Ŵ`` is. Dense tensors take the weighted mean of their changes."""

    fails: ClassVar[frozenset[Property]]
    requires: ClassVar[frozenset[Requirement]] = frozenset({Requirement.ONE_VERSION})
    order: ClassVar[Order] = Order.TOP
    """Which directions clients train."""
    adds: ClassVar[bool] = False
    """Whether ``Ŵ`` is added, as clients began from nothing: ``c = 1``. Else the model moves there: ``c = 1 − η``."""

    @abstractmethod
    def terms(self, cohort: TrainedCohort, module: LowRankModule) -> Iterator[Pair]:
        """``Ŵ`` of one module as a sum of products ``L·N``, client by client: ``L [m, w]`` and ``N [w, n]``.

        Raises:
            MergeError: A client did not train as the rule needs it.
        """

    @final
    def start(self, manifest: Manifest, offset: GlobalState, seed: int) -> GlobalState:
        """The offset itself."""
        del manifest, seed
        return offset

    @final
    def handout(self, state: GlobalState, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
        """The model's directions in :attr:`order`."""
        return make_ordered_handout(self.order, state, manifest, slots, seed)

    @final
    def open(self, state: GlobalState, given: RoundInput) -> ProductMerge:
        """Takes the average in; see :meth:`Strategy.open`."""
        return ProductMerge(rule=self, state=state, trained=TrainedCohort.of(given, self.requires), step=given.step)

    @final
    def only(self, state: GlobalState, manifest: Manifest, module: LowRankModule) -> GlobalState:
        """As :meth:`GlobalState.only`."""
        del manifest
        return state.only(module.name)

    @final
    def offset(self, state: GlobalState, manifest: Manifest) -> GlobalState:
        """The state itself."""
        del manifest
        return state

    @final
    def tensors(self, state: GlobalState) -> Tensors:
        """As :meth:`GlobalState.tensors`."""
        return state.tensors()

    @final
    def of_tensors(self, tensors: Stored, manifest: Manifest) -> GlobalState:
        """As :meth:`GlobalState.of_tensors`."""
        return GlobalState.of_tensors(tensors, manifest)


@final
@dataclass(frozen=True, kw_only=True)
class ProductMerge:
    """``M' = c·M + η·Ŵ``, ready to be merged module by module."""

    rule: ProductAverage
    """Says what ``Ŵ`` is, and whether it is added."""
    state: GlobalState
    """``M``."""
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
        return self.state.width(module.name) + self.trained.width

    def merge_module(self, module: LowRankModule) -> tuple[ModuleState, ModuleReport]:
        """The next offset of one module, its sum taken client by client."""
        base, scratch = self.state.low_rank[module.name], self.trained.scratch
        kept = 1.0 if self.rule.adds else 1.0 - self.step
        total = LosslessSum(base.shape, self.trained.width, scratch)
        for left, right in self.rule.terms(self.trained, module):
            total.add(left.T, right, self.step)
        merged = add_increment(base.scaled(kept), total.finish(), self.trained.slots, scratch)
        return merged.state, report_step(module, base, merged, self.trained, self.step)

    def finish(self, modules: Mapping[str, tuple[ModuleState, ModuleReport]]) -> tuple[GlobalState, MergeReport]:
        """The next state; the dense tensors are merged here."""
        before = self.state.dense
        dense = self.trained.moved_dense(before, self.step)
        ordered = [modules[module.name] for module in self.manifest.low_rank]
        state = GlobalState(low_rank={told.name: value for value, told in ordered}, dense=dense)
        return state, report_round(self.trained.checked, tuple(told for _, told in ordered), before, dense)
