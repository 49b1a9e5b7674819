"""The delta strategy, the default: the model is kept exactly, and what the clients changed is added to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np

from aggregator.merge import Factors, GlobalState, MergeError, ModuleState, Round, Scratch, stack
from aggregator.merge.accumulator import add_product
from aggregator.merge.module import add_increment
from aggregator.merge.rounds import report_merged
from aggregator.merge.strategies.interface import Property, Requirement, Strategy
from aggregator.merge.strategies.orders import Order, make_ordered_handout
from aggregator.merge.strategies.reports import report_round
from aggregator.merge.strategies.retention import fading
from aggregator.merge.tensor_file import Stored, Tensors, prefixed, under
from aggregator.optimizers.controls import Controls, ControlVariates
from aggregator.optimizers.memory import Memory
from aggregator.optimizers.moving_average import MovingAverage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.merge import MergeReport, ModuleReport
    from aggregator.merge.opened import OpenMerge
    from aggregator.merge.strategies.interface import RoundInput
    from aggregator.optimizers.interface import Optimizer
    from aggregator.privacy.noise import GaussianNoise
    from protocol.manifest import LowRankModule, Manifest
    from protocol.payload import AdapterTensors

__all__ = ["Delta", "DeltaState"]


@dataclass(frozen=True, kw_only=True)
class DeltaState:
    """The model, and what the server's optimizer remembers."""

    offset: GlobalState
    """The exact offset from the base."""
    memory: Memory | None
    """None if there is no optimizer."""
    controls: Controls | None = None
    """None if changes are not corrected."""


@final
@dataclass(frozen=True, kw_only=True)
class Delta(Strategy[DeltaState]):
    """``M' = M + optimizer(η·Σ p_i D_i)``, ``D_i`` being what client ``i`` changed in product space.

    Exact at any mix of ranks, over any number of rounds: what a client does not see, it does not change. The one bias
    left is that a client without the residual takes its gradient at ``trunc_r(M)`` instead of ``M``; it does not
    compound. Where clients differ strongly and the step does not shrink, plain deltas overshoot: ``retention``, a
    decaying step (:class:`~aggregator.optimizers.Sgd`) or the residual hold against that. With ``retention < 1`` the
    merge is no longer the mean of the changes (exact and identical fail), though still the identity if there are none.
    """

    order: Order = Order.TOP
    """Which directions clients train."""
    retention: float = 1.0
    """``ρ``, share kept of what the cohort did not see (:mod:`~aggregator.merge.strategies.retention`); 1: all."""
    optimizer: Optimizer | None = None
    """What is made of the merged change before it is added; None: it is added as it is."""
    controls: ControlVariates | None = None
    """What devices' changes are corrected by before that; None: they count as they came."""
    noise: GaussianNoise | None = None
    """What is added to every value besides, for central differential privacy: a low-rank module then becomes a matrix,
    since noise on factors would be no noise of a known size on their product. None: nothing."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.retention <= 1.0:
            raise MergeError(f"retention is a share from 0 to 1, got {self.retention}")
        if self.retention < 1.0 and self.order is not Order.TOP:
            raise MergeError(f"retention goes with the order 'top', got {self.order.value!r}: it acts on the tail of M")
        if self.controls is not None and not isinstance(self.optimizer, MovingAverage | None):
            raise MergeError("controls go with a moving average, or no optimizer: others do not let a tensor rest")
        if self.noise is not None and not self._plain:
            raise MergeError("noise goes with the plain sum of changes: no retention, optimizer or controls")

    @property
    def requires(self) -> frozenset[Requirement]:
        """The residual where hand-outs begin with fresh slots; one version with retention or controls.

        What a cohort of several versions did not see is no one tail, and gradients at several are not comparable.
        """
        residual = {Requirement.RESIDUAL} if self.order is Order.FRESH else set()
        return frozenset(residual | ({Requirement.ONE_VERSION} if self._of_one_version else set()))

    @property
    def _plain(self) -> bool:
        return self.optimizer is None and self.controls is None and self.retention == 1.0

    @property
    def _of_one_version(self) -> bool:
        return self.retention < 1.0 or self.controls is not None

    @property
    def fails(self) -> frozenset[Property]:
        """None, or with retention those named above."""
        return frozenset({Property.EXACT, Property.IDENTICAL}) if self.retention < 1.0 else frozenset()

    def start(self, manifest: Manifest, offset: GlobalState, seed: int) -> DeltaState:
        """The offset itself."""
        del seed
        memory = None if self.optimizer is None else self.optimizer.init(manifest)
        return DeltaState(
            offset=offset, memory=memory, controls=None if self.controls is None else self.controls.init(manifest)
        )

    def handout(self, state: DeltaState, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
        """The model's directions in :attr:`order`."""
        return make_ordered_handout(self.order, state.offset, manifest, slots, seed)

    def open(self, state: DeltaState, given: RoundInput) -> OpenMerge[DeltaState]:
        """Adds what was changed; see :meth:`Strategy.open`."""
        if self._of_one_version and any(update.staleness for update in given.updates):
            raise MergeError("retention and controls go with updates of the live version alone; use neither here")
        plain = self._plain
        round = Round.of(
            state.offset if plain else GlobalState.zeros(given.manifest),
            given.manifest,
            given.handout,
            given.updates,
            server_learning_rate=given.step,
            scratch=given.scratch,
            stale=given.stale,
        )
        return PlainMerge(round, self.noise) if plain else SteppedMerge(rule=self, state=state, changes=round)

    def only(self, state: DeltaState, manifest: Manifest, module: LowRankModule) -> DeltaState:
        """As :meth:`GlobalState.only`; what an optimizer remembers is for the end of a merge."""
        del manifest
        return DeltaState(offset=state.offset.only(module.name), memory=None)

    def offset(self, state: DeltaState, manifest: Manifest) -> GlobalState:
        """The model."""
        del manifest
        return state.offset

    def tensors(self, state: DeltaState) -> Tensors:
        """As :meth:`GlobalState.tensors`; with an optimizer or controls, beside what those remember."""
        if state.memory is None and state.controls is None:
            return state.offset.tensors()
        memory = {} if state.memory is None else prefixed("memory", state.memory.tensors())
        controls = {} if state.controls is None else prefixed("controls", state.controls.tensors())
        return {**prefixed("offset", state.offset.tensors()), **memory, **controls}

    def of_tensors(self, tensors: Stored, manifest: Manifest) -> DeltaState:
        """Reads what :meth:`tensors` told, with the same kind of optimizer and controls."""
        if self.optimizer is None and self.controls is None:
            return DeltaState(offset=GlobalState.of_tensors(tensors, manifest), memory=None)
        offset = GlobalState.of_tensors(under("offset", tensors), manifest)
        memory, controls = under("memory", tensors), under("controls", tensors)
        return DeltaState(
            offset=offset,
            memory=None if self.optimizer is None else Memory.of_tensors(memory, manifest),
            controls=None if self.controls is None else Controls.of_tensors(controls, manifest),
        )


@final
@dataclass(frozen=True)
class PlainMerge:
    """What was changed is added as it is, with noise where there shall be some."""

    round: Round
    """From the state on."""
    noise: GaussianNoise | None = None
    """On every value; None: none."""

    @property
    def manifest(self) -> Manifest:
        """The run's universe."""
        return self.round.manifest

    def width(self, module: LowRankModule) -> int:
        """Terms of one module's sum, of state and cohort."""
        return self.round.width(module)

    def merge_module(self, module: LowRankModule) -> tuple[ModuleState, ModuleReport]:
        """The next offset of one module."""
        state, report = self.round.merge_module(module)
        if self.noise is None:
            return state, report
        cohort, scratch = self.round.cohort, Scratch(self.round.scratch)
        merged = add_increment(state, self.noise.values(module.name, state.shape), self.round.handout.rank, scratch)
        return merged.state, report_merged(module.name, merged, {1, *cohort.ranks}, cohort.retention(module))

    def finish(self, modules: Mapping[str, tuple[ModuleState, ModuleReport]]) -> tuple[DeltaState, MergeReport]:
        """The next state."""
        offset, report = self.round.finish(modules)
        if self.noise is None:
            return DeltaState(offset=offset, memory=None), report
        dense = {name: value + self.noise.values(name, value.shape) for name, value in offset.dense.items()}
        report = report_round(self.round.cohort, report.modules, self.round.state.dense, dense)
        return DeltaState(offset=replace(offset, dense=dense), memory=None), report


@final
@dataclass(frozen=True, kw_only=True)
class SteppedMerge:
    """What was changed is summed up, made a step of, and then added, with what fades."""

    rule: Delta
    """Its settings."""
    state: DeltaState
    """The version that was handed out."""
    changes: Round
    """From zero on: the sum of what was changed."""

    @property
    def manifest(self) -> Manifest:
        """The run's universe."""
        return self.changes.manifest

    def width(self, module: LowRankModule) -> int:
        """Terms of one module's sum, of state and cohort."""
        return self.state.offset.width(module.name) + self.changes.width(module)

    def merge_module(self, module: LowRankModule) -> tuple[ModuleState, ModuleReport]:
        """The next offset of one module; with an optimizer, which sees all of them at once, the change alone."""
        change, report = self.changes.merge_module(module)
        return (change, report) if self.rule.optimizer is not None else self._added(module, change)

    def finish(self, modules: Mapping[str, tuple[ModuleState, ModuleReport]]) -> tuple[DeltaState, MergeReport]:
        """The next state: the optimizer takes its step here."""
        change, _ = self.changes.finish(modules)  # without an optimizer, of its dense tensors alone
        memory, controls = None, None
        if self.rule.controls is not None and self.state.controls is not None:
            change, controls = self.rule.controls.correct(change, self.changes, self.state.controls)
        if self.rule.optimizer is not None and self.state.memory is not None:
            change, memory = self.rule.optimizer.update(self._trained(change), self.state.memory)
            modules = {
                m.name: self._added(m, change.low_rank.get(m.name, ModuleState.zeros(m)))
                for m in self.manifest.low_rank
            }
        before = self.state.offset.dense
        dense = {**before, **{name: before[name] + step for name, step in change.dense.items()}}
        ordered = [modules[module.name] for module in self.manifest.low_rank]
        offset = GlobalState(low_rank={told.name: value for value, told in ordered}, dense=dense)
        report = report_round(self.changes.cohort, tuple(told for _, told in ordered), before, dense)
        return DeltaState(offset=offset, memory=memory, controls=controls), report

    def _trained(self, change: GlobalState) -> GlobalState:
        """What of it anybody trained; the rest is zeros, which an optimizer would take for what devices want."""
        names = frozenset[str]().union(*(member.names for member in self.changes.cohort.members))
        return GlobalState(
            low_rank={name: module for name, module in change.low_rank.items() if name in names},
            dense={name: value for name, value in change.dense.items() if name in names},
        )

    def _added(self, module: LowRankModule, change: ModuleState) -> tuple[ModuleState, ModuleReport]:
        before, scratch, slots = self.state.offset.low_rank[module.name], Scratch(self.changes.scratch), self._slots
        base = replace(before, discarded=before.discarded + change.discarded)  # what the change lacks, the model lacks
        shares = self.changes.cohort.retention(module)
        seen = self.changes.cohort.seen(module)
        merged = add_increment(base, self._increment(base, change, seen, scratch), slots, scratch)
        return merged.state, report_merged(module.name, merged, {1, *self.changes.cohort.ranks}, shares)

    def _increment(
        self, base: ModuleState, change: ModuleState, seen: Mapping[int, float], scratch: Scratch
    ) -> Factors | NDArray[np.float64]:
        if self.rule.retention == 1.0:
            fades = Factors(np.zeros((base.shape[0], 0)), np.zeros((0, base.shape[1])))
        else:
            fades = fading(base, seen, change.norm(), self.rule.retention)
        if not isinstance(change.value, np.ndarray):
            return stack([change.factors(), fades]).pruned()
        total = scratch.empty(base.shape)
        total[:] = change.value
        add_product(total, fades)
        return total

    @property
    def _slots(self) -> int:
        return self.changes.handout.rank
