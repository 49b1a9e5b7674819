"""raFLoRA-style averaging: each range of slots is averaged over the clients that have it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge import Factors, stack
from aggregator.merge.strategies.interface import Property
from aggregator.merge.strategies.product import ProductAverage

if TYPE_CHECKING:
    from aggregator.merge.strategies.cohort import TrainedCohort

__all__ = ["Raflora"]


@final
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

    def average(self, cohort: TrainedCohort, name: str) -> Factors:
        """The partitions' means, stacked."""
        parts = []
        for start, end in pairwise([0, *cohort.ranks]):
            holders = [update for update in cohort.updates if update.rank >= end]
            weight = sum(cohort.share(update) for update in holders)
            for update in holders:
                B, A = cohort.trained(update, name)
                parts.append(Factors(cohort.share(update) / weight * B[:, start:end], A[start:end]))
        return stack(parts)
