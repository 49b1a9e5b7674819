"""Momentum in product space: a running sum of merged changes, kept as factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from aggregator.merge import GlobalState, MergeError, ModuleState
from aggregator.merge.vectors import combine
from aggregator.optimizers.memory import Memory
from aggregator.optimizers.settings import check_positive, check_share

if TYPE_CHECKING:
    from protocol.manifest import Manifest

__all__ = ["Momentum"]


@final
@dataclass(frozen=True, kw_only=True)
class Momentum:
    """``V' = β·V + D``, ``ΔM = η·V'``.

    ``V`` gains the rank of ``D`` each round. With ``rank_max`` it is cut to its best approximation of that rank, and
    ``ModuleState.discarded`` of the momentum is the certificate: with ``E`` the energy cut away, the distance to the
    uncut recursion is at most ``e' = β·e + E``.

    Reference: Hsu et al., "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification" (FedAvgM), 2019, arXiv:1909.06335, section 4.3.
    """

    learning_rate: float = 1.0
    """``η``."""
    beta: float = 0.9
    """``β``, in [0, 1)."""
    rank_max: int | None = None
    """Directions kept of each module's momentum; None: all."""

    def __post_init__(self) -> None:
        check_positive(learning_rate=self.learning_rate)
        check_share(beta=self.beta)
        if self.rank_max is not None and self.rank_max < 1:
            raise MergeError(f"rank_max must be at least 1, or None for all directions, got {self.rank_max}")

    def init(self, manifest: Manifest) -> Memory:
        """No momentum."""
        return Memory.zeros(manifest)

    def update(self, change: GlobalState, memory: Memory) -> tuple[GlobalState, Memory]:
        """``η·V'`` and ``V'``."""
        before = memory.momentum
        known = GlobalState(
            low_rank={name: before.low_rank[name] for name in change.low_rank},
            dense={name: before.dense[name] for name in change.dense},
        )
        momentum = combine([(self.beta, known), (1.0, change)])
        if self.rank_max is not None:
            low_rank = {name: _cut(module, self.rank_max) for name, module in momentum.low_rank.items()}
            momentum = GlobalState(low_rank=low_rank, dense=momentum.dense)
        after = GlobalState(low_rank={**before.low_rank, **momentum.low_rank}, dense={**before.dense, **momentum.dense})
        return (
            combine([(self.learning_rate, momentum)]),
            Memory(steps=memory.steps + 1, momentum=after, second=memory.second),
        )


def _cut(module: ModuleState, rank: int) -> ModuleState:
    svd = module.svd
    return ModuleState(svd.truncate(rank), module.discarded + svd.tail_norm(rank))
