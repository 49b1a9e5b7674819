"""The delta strategy, the default: the model is kept exactly, and what the clients changed is added to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aggregator.merge import Cohort, GlobalState, MergeError, merge_round
from aggregator.merge.strategies.cohort import check_step
from aggregator.merge.strategies.interface import Property, Requirement
from aggregator.merge.strategies.orders import Order, make_ordered_handout
from aggregator.merge.strategies.reports import report_offsets
from aggregator.merge.strategies.retention import fading
from aggregator.merge.vectors import as_increment, factors_of
from aggregator.optimizers.memory import Memory

if TYPE_CHECKING:
    from aggregator.merge import ClientUpdate, MergeReport
    from aggregator.optimizers.interface import Optimizer
    from protocol.manifest import Manifest
    from protocol.payload import AdapterTensors

__all__ = ["Delta", "DeltaState"]


@dataclass(frozen=True, kw_only=True)
class DeltaState:
    """The model, and what the server's optimizer remembers."""

    offset: GlobalState
    """The exact offset from the base."""
    memory: Memory | None
    """None if there is no optimizer."""


@final
@dataclass(frozen=True, kw_only=True)
class Delta:
    """``M' = M + optimizer(η·Σ p_i D_i)``, ``D_i`` being what client ``i`` changed in product space.

    Exact at any mix of ranks, over any number of rounds: what a client does not see, it does not change. The one bias
    left is that a client without the residual takes its gradient at ``trunc_r(M)`` instead of ``M``; it does not
    compound. Where clients differ strongly and the step does not shrink, plain deltas overshoot: ``retention``, a
    decaying step (:class:`~aggregator.optimizers.Sgd`) or the residual hold against that. With ``retention < 1`` the
    merge is no longer the mean of the changes (exact and identical fail), though still the identity if there are none.
    """

    requires: ClassVar[frozenset[Requirement]] = frozenset()

    order: Order = Order.TOP
    """Which directions clients train."""
    residual: bool = False
    """Whether clients hold the slots behind their rank as a frozen residual. Only retention needs to know."""
    retention: float = 1.0
    """``ρ``, share kept of what the cohort did not see (:mod:`~aggregator.merge.strategies.retention`); 1: all."""
    optimizer: Optimizer | None = None
    """What is made of the merged change before it is added; None: it is added as it is."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.retention <= 1.0:
            raise MergeError(f"retention is a share from 0 to 1, got {self.retention}")
        if self.retention < 1.0 and self.order is not Order.TOP:
            raise MergeError(f"retention goes with the order 'top', got {self.order.value!r}: it acts on the tail of M")

    @property
    def fails(self) -> frozenset[Property]:
        """None, or with retention those named above."""
        return frozenset({Property.EXACT, Property.IDENTICAL}) if self.retention < 1.0 else frozenset()

    def start(self, manifest: Manifest, offset: GlobalState, seed: int) -> DeltaState:
        """The offset itself."""
        del seed
        return DeltaState(offset=offset, memory=None if self.optimizer is None else self.optimizer.init(manifest))

    def handout(self, state: DeltaState, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
        """The model's directions in :attr:`order`."""
        return make_ordered_handout(self.order, state.offset, manifest, slots, seed)

    def merge(
        self,
        state: DeltaState,
        manifest: Manifest,
        handout: AdapterTensors,
        updates: Iterable[ClientUpdate],
        *,
        step: float = 1.0,
    ) -> tuple[DeltaState, MergeReport]:
        """Adds what was changed; see :meth:`Strategy.merge`."""
        check_step(step)
        if self.optimizer is None and self.retention == 1.0:
            offset, report = merge_round(state.offset, manifest, handout, updates, server_learning_rate=step)
            return DeltaState(offset=offset, memory=None), report
        updates = tuple(updates)
        change, _ = merge_round(GlobalState.zeros(manifest), manifest, handout, updates, server_learning_rate=step)
        memory = None
        if self.optimizer is not None and state.memory is not None:
            change, memory = self.optimizer.update(change, state.memory)
        offset = state.offset.add(as_increment(change))
        cohort = Cohort.of(updates, manifest, handout.rank)
        if self.retention < 1.0:
            norms = {name: factors_of(module).norm() for name, module in change.low_rank.items()}
            seen = handout.rank if self.residual else 0
            offset = offset.add(
                fading(state.offset, manifest, cohort, norms, retention=self.retention, seen_by_all=seen)
            )
        return DeltaState(offset=offset, memory=memory), report_offsets(state.offset, offset, manifest, cohort)

    def offset(self, state: DeltaState, manifest: Manifest) -> GlobalState:
        """The model."""
        del manifest
        return state.offset

    def to_bytes(self, state: DeltaState) -> bytes:
        """As :meth:`GlobalState.to_bytes`; with an optimizer, safetensors of two byte strings."""
        if state.memory is None:
            return state.offset.to_bytes()
        parts = {"offset": state.offset.to_bytes(), "memory": state.memory.to_bytes()}
        return save({name: np.frombuffer(data, np.uint8) for name, data in parts.items()})

    def from_bytes(self, data: bytes, manifest: Manifest) -> DeltaState:
        """Reads what :meth:`to_bytes` wrote, with the same kind of optimizer."""
        if self.optimizer is None:
            return DeltaState(offset=GlobalState.from_bytes(data, manifest), memory=None)
        try:
            parts = {name: part.tobytes() for name, part in load(data).items()}
            offset, memory = parts["offset"], parts["memory"]
        except (SafetensorError, KeyError) as error:
            raise MergeError(f"the stored state holds no optimizer's memory: {error}") from error
        return DeltaState(offset=GlobalState.from_bytes(offset, manifest), memory=Memory.from_bytes(memory, manifest))
