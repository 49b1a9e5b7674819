"""FLoRA: clients start from nothing on top of the model, and their adapters are stacked into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge import MergeError
from aggregator.merge.strategies.interface import Requirement
from aggregator.merge.strategies.orders import Order
from aggregator.merge.strategies.product import ProductAverage

if TYPE_CHECKING:
    from aggregator.merge.strategies.interface import Property
    from aggregator.merge.strategies.trained import Pair, TrainedCohort
    from protocol.manifest import LowRankModule

__all__ = ["Flora"]


@final
@dataclass(frozen=True)
class Flora(ProductAverage):
    """``M' = M + [p_1·B̂_1 … p_K·B̂_K][A_1; …; A_K]``, each client from ``B̂ = 0`` and fresh rows of ``A``.

    Exact, in all properties. The price is paid by the devices: every one needs all of ``M`` behind its fresh slots, as
    the residual here (the paper folds it into the base weights, which a quantised base does not survive); ``A`` gets no
    gradient at the first step, and optimizer states start anew.

    Reference: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations", 2024, arXiv:2409.05976, section 3.
    """

    fails: ClassVar[frozenset[Property]] = frozenset()
    requires: ClassVar[frozenset[Requirement]] = frozenset({Requirement.ONE_VERSION, Requirement.RESIDUAL})
    order: ClassVar[Order] = Order.FRESH
    adds: ClassVar[bool] = True

    def terms(self, cohort: TrainedCohort, module: LowRankModule) -> Iterator[Pair]:
        """``p_i·B̂_i`` and ``A_i``.

        Raises:
            MergeError: A client did not begin from nothing.
        """
        for client in cohort.trained(module):
            if client.handed[0].any():
                raise MergeError(
                    f"update of {client.client!r}: {module.name!r}: it trained slots of the model itself; stacking "
                    "needs fresh ones, a hand-out made by this strategy"
                )
            B, A = client.factors
            yield client.weight * B, A
