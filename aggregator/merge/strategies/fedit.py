"""FedIT: federated averaging of the LoRA factors themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge.strategies.interface import Property, Requirement
from aggregator.merge.strategies.padding import add_padded
from aggregator.merge.strategies.slots import SlotAverage

if TYPE_CHECKING:
    from aggregator.merge.strategies.trained import Pair, TrainedCohort
    from protocol.manifest import LowRankModule

__all__ = ["FedIt"]


@final
@dataclass(frozen=True)
class FedIt(SlotAverage):
    """``B̂' = Σ p_i·B̂_i`` and ``A' = Σ p_i·A_i``, clients of one rank only.

    Off the mean of products by the clients' covariance, ``−Σ p_i (B̂_i − B̂')(A_i − A')``, which is zero only where they
    share a factor: exact fails. The covariance depends on each client's gauge: gauge fails.

    As the mean is linear, it is taken of the changes; the rounding of the hand-out then cancels.

    Reference: Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", 2023, arXiv:2305.05644,
    section 3.
    """

    fails: ClassVar[frozenset[Property]] = frozenset({Property.EXACT, Property.GAUGE})
    requires: ClassVar[frozenset[Requirement]] = frozenset({Requirement.EQUAL_RANKS, Requirement.ONE_VERSION})

    def average(self, cohort: TrainedCohort, module: LowRankModule, held: Pair) -> Pair:
        """The state's factors and the mean change."""
        total = held[0].copy(), held[1].copy()
        for client in cohort.trained(module):
            add_padded(total, client.change, client.weight)
        return total
