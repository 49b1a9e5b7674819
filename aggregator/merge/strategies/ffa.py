"""FFA-LoRA: ``A`` is drawn once and frozen everywhere, so that averaging ``B`` is exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge.strategies.interface import Property, Requirement
from aggregator.merge.strategies.slots import SlotAverage

if TYPE_CHECKING:
    from aggregator.merge.strategies.trained import Pair, TrainedCohort
    from protocol.manifest import LowRankModule

__all__ = ["Ffa"]


@final
@dataclass(frozen=True)
class Ffa(SlotAverage):
    """``B̂' = B̂ + Σ p_i·pad(dB̂_i)``, ``A' = A``.

    With ``A`` a shared prefix the product is linear in ``B̂``: exact at mixed ranks too, in all properties. The price is
    the subspace: the model can change in the row space of the ``A`` that was drawn at the start, and nowhere else.

    Reference: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", 2024, arXiv:2403.12313, section 4.
    """

    fails: ClassVar[frozenset[Property]] = frozenset()
    requires: ClassVar[frozenset[Requirement]] = frozenset({Requirement.FROZEN_A, Requirement.ONE_VERSION})

    def average(self, cohort: TrainedCohort, module: LowRankModule, held: Pair) -> Pair:
        """``B̂`` and its mean change, and the frozen ``A``."""
        B = held[0].copy()
        for client in cohort.trained(module):
            B[:, : client.rank] += client.weight * client.change[0]
        return B, held[1]
