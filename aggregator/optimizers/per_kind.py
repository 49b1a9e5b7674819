"""One optimizer for low-rank modules and another for dense tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from aggregator.merge import GlobalState
from aggregator.optimizers.memory import Memory

if TYPE_CHECKING:
    from aggregator.optimizers.interface import Optimizer
    from protocol.manifest import Manifest

__all__ = ["PerKind"]


@final
@dataclass(frozen=True, kw_only=True)
class PerKind:
    """Runs the two side by side on one memory; each sees its own trainables only."""

    low_rank: Optimizer
    """For low-rank modules."""
    dense: Optimizer
    """For dense tensors."""

    def init(self, manifest: Manifest) -> Memory:
        """Both memories, as one."""
        one = Memory.zeros(manifest) if not manifest.low_rank else self.low_rank.init(replace(manifest, dense=()))
        other = Memory.zeros(manifest) if not manifest.dense else self.dense.init(replace(manifest, low_rank=()))
        return _united(one, other)

    def update(self, change: GlobalState, memory: Memory) -> tuple[GlobalState, Memory]:
        """Both steps, as one."""
        step, one = self.low_rank.update(_low_rank(change), replace(memory, momentum=_low_rank(memory.momentum)))
        dense_step, other = self.dense.update(_dense(change), replace(memory, momentum=_dense(memory.momentum)))
        return GlobalState(low_rank=step.low_rank, dense=dense_step.dense), _united(one, other)


def _low_rank(state: GlobalState) -> GlobalState:
    return GlobalState(low_rank=state.low_rank, dense={})


def _dense(state: GlobalState) -> GlobalState:
    return GlobalState(low_rank={}, dense=state.dense)


def _united(low_rank: Memory, dense: Memory) -> Memory:
    momentum = GlobalState(low_rank=low_rank.momentum.low_rank, dense=dense.momentum.dense)
    return Memory(steps=dense.steps, momentum=momentum, second=dense.second)
