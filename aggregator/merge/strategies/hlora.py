"""HLoRA and FlexLoRA: the exact mean of the clients' products, in the place of the global model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge.strategies.interface import Property
from aggregator.merge.strategies.product import ProductAverage

if TYPE_CHECKING:
    from aggregator.merge.strategies.trained import Pair, TrainedCohort
    from protocol.manifest import LowRankModule

__all__ = ["Hlora"]


@final
@dataclass(frozen=True)
class Hlora(ProductAverage):
    """``M' = Σ p_i·s_i·B_i·A_i``, handed out as its best approximation of each client's rank.

    Exact in one round and biased over many. A client of rank ``r`` returns ``trunc_r(M) + D_i``, so
    ``M' = M + Σ p_i D_i − Σ p_i (M − trunc_{r_i}(M))``: singular value ``j`` is multiplied each round by the weight of
    the clients with ``r_i ≥ j``, even if nobody learns. Hence no-op, identical and exact fail; precision fails because
    the rounding of the hand-out comes back as if it were learnt.

    Unlike the public implementations, scaling ``s_i`` is taken into account: it is in ``B̂``.

    Reference: Liu et al., "HLoRA: Efficient Federated Learning System for LLM Heterogeneous Fine-Tuning", 2025,
    arXiv:2503.00813; Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
    Resources" (FlexLoRA), 2024, arXiv:2402.11505, section 3.
    """

    fails: ClassVar[frozenset[Property]] = frozenset(
        {Property.NO_OP, Property.IDENTICAL, Property.EXACT, Property.PRECISION}
    )

    def terms(self, cohort: TrainedCohort, module: LowRankModule) -> Iterator[Pair]:
        """``p_i·B̂_i`` and ``A_i``."""
        for client in cohort.trained(module):
            B, A = client.factors
            yield client.weight * B, A
