"""raFLoRA-style averaging: each range of slots is averaged over the clients that have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np

from aggregator.merge.strategies.interface import Property
from aggregator.merge.strategies.product import ProductAverage

if TYPE_CHECKING:
    from aggregator.merge.strategies.trained import Pair, TrainedCohort
    from protocol.manifest import LowRankModule

__all__ = ["Raflora"]


@final
@dataclass(frozen=True)
class Raflora(ProductAverage):
    """``M' = Σ_k Σ_{i: r_i ≥ h_k} (p_i/P_k)·B̂_i[:, h_{k−1}:h_k]·A_i[h_{k−1}:h_k]``, ``P_k`` the weight of its holders.

    The partitions end at the cohort's ranks ``h_1 < h_2 < …``. Renormalising removes the dilution that makes HLoRA
    shrink, but high slots then hang on the data of high-rank clients alone (exact fails), a slot is no property of a
    model (gauge fails), what is beyond the cohort's highest rank is dropped (no-op and identical fail), and the
    rounding of the hand-out comes back as if it were learnt (precision fails).

    Written from the paper's description of the rule, not from its code.

    Reference: Wu et al., "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity", 2026,
    arXiv:2602.13486, section 5.
    """

    fails: ClassVar[frozenset[Property]] = frozenset(
        {Property.NO_OP, Property.IDENTICAL, Property.EXACT, Property.GAUGE, Property.PRECISION}
    )

    def terms(self, cohort: TrainedCohort, module: LowRankModule) -> Iterator[Pair]:
        """``p_i/P_k·B̂_i`` and ``A_i``, slot ``j`` by the ``P_k`` of its partition."""
        share = {rank: sum(_weights(cohort, at_least=rank)) for rank in cohort.checked.ranks}
        for client in cohort.trained(module):
            B, A = client.factors
            held = [next(share[rank] for rank in cohort.checked.ranks if rank > slot) for slot in range(client.rank)]
            yield client.weight / np.array(held) * B, A


def _weights(cohort: TrainedCohort, at_least: int) -> Iterator[float]:
    for member in cohort.checked.members:
        if member.update.rank >= at_least:
            yield cohort.checked.weight(member.update)
