"""Zero-padding: factors of lower ranks are filled up with zeros and averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge.strategies.interface import Property
from aggregator.merge.strategies.padding import padded_mean
from aggregator.merge.strategies.slots import SlotAverage

if TYPE_CHECKING:
    from aggregator.merge.strategies.trained import Pair, TrainedCohort
    from protocol.manifest import LowRankModule

__all__ = ["ZeroPadding"]


@final
@dataclass(frozen=True)
class ZeroPadding(SlotAverage):
    """``B̂' = Σ p_i·pad(B̂_i)`` and ``A' = Σ p_i·pad(A_i)``.

    A slot that clients of weight ``P_j`` hold is multiplied by ``P_j`` on both sides, so ``P_j²`` in the product, each
    round and even if nobody learns: no-op and identical fail. The product of means is no mean of products, and depends
    on the clients' gauge: exact and gauge fail. The rounding of the hand-out comes back as if it were learnt: precision
    fails.

    Reference: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", 2024,
    arXiv:2401.06432, section 4, which starts from it.
    """

    fails: ClassVar[frozenset[Property]] = frozenset(
        {Property.NO_OP, Property.IDENTICAL, Property.EXACT, Property.GAUGE, Property.PRECISION}
    )

    def average(self, cohort: TrainedCohort, module: LowRankModule, held: Pair) -> Pair:
        """The padded mean by ``p_i``."""
        return padded_mean(((client.weight, client.factors) for client in cohort.trained(module)), held)
