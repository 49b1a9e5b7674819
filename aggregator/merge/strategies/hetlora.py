"""HetLoRA: zero-padding whose weights are the norms of the clients' adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge import Factors
from aggregator.merge.strategies.interface import Property
from aggregator.merge.strategies.padding import padded_mean
from aggregator.merge.strategies.slots import SlotAverage

if TYPE_CHECKING:
    from aggregator.merge.strategies.trained import Pair, TrainedCohort
    from protocol.manifest import LowRankModule

__all__ = ["HetLora"]


@final
@dataclass(frozen=True)
class HetLora(SlotAverage):
    """``B̂' = Σ q_i·pad(B̂_i)``, ``A' = Σ q_i·pad(A_i)`` with ``q_i = ‖B̂_iA_i‖_F / Σ_k ‖B̂_kA_k‖_F``, module by module.

    All that zero-padding fails, and split: weights by norm leave no room for examples, so a client that appears as two
    counts twice. While all norms are zero, examples decide. The clients' rank self-pruning is not part of the merge.

    Reference: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", 2024,
    arXiv:2401.06432, section 4 (sparsity-weighted aggregation).
    """

    fails: ClassVar[frozenset[Property]] = frozenset(
        {Property.NO_OP, Property.IDENTICAL, Property.EXACT, Property.GAUGE, Property.PRECISION, Property.SPLIT}
    )

    def average(self, cohort: TrainedCohort, module: LowRankModule, held: Pair) -> Pair:
        """The padded mean by ``q_i``; the clients are read twice, since the first need the norms of the last."""
        norms = [Factors(*client.factors).norm() for client in cohort.trained(module)]
        total = sum(norms)
        clients = zip(norms, cohort.trained(module), strict=True)
        return padded_mean(((norm / total if total else c.weight, c.factors) for norm, c in clients), held)
