"""FLoRA: clients start from nothing on top of the model, and their adapters are stacked into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge import GlobalState, MergeError
from aggregator.merge.strategies.interface import Requirement, Strategy
from aggregator.merge.strategies.orders import Order, make_ordered_handout
from aggregator.merge.strategies.product import ProductMerge
from aggregator.merge.strategies.trained import TrainedCohort

if TYPE_CHECKING:
    from aggregator.merge.strategies.interface import Property, RoundInput
    from aggregator.merge.strategies.trained import Pair
    from aggregator.merge.tensor_file import Stored, Tensors
    from protocol.manifest import LowRankModule, Manifest
    from protocol.payload import AdapterTensors

__all__ = ["Flora"]


@final
@dataclass(frozen=True)
class Flora(Strategy[GlobalState]):
    """``M' = M + [p_1·B̂_1 … p_K·B̂_K][A_1; …; A_K]``, each client from ``B̂ = 0`` and fresh rows of ``A``.

    Exact, in all properties. The price is paid by the devices: every one needs all of ``M`` behind its fresh slots, as
    the residual here (the paper folds it into the base weights, which a quantised base does not survive); ``A`` gets no
    gradient at the first step, and optimizer states start anew.

    Reference: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations", 2024, arXiv:2409.05976, section 3.
    """

    fails: ClassVar[frozenset[Property]] = frozenset()
    requires: ClassVar[frozenset[Requirement]] = frozenset({Requirement.ONE_VERSION, Requirement.RESIDUAL})

    def start(self, manifest: Manifest, offset: GlobalState, seed: int) -> GlobalState:
        """The offset itself."""
        del manifest, seed
        return offset

    def handout(self, state: GlobalState, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
        """``rank_max`` fresh slots, the model behind them."""
        return make_ordered_handout(Order.FRESH, state, manifest, slots, seed)

    def open(self, state: GlobalState, given: RoundInput) -> ProductMerge:
        """Adds the stack; see :meth:`Strategy.open`."""
        return ProductMerge(rule=self, state=state, trained=TrainedCohort.of(given), kept=1.0, step=given.step)

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

    def only(self, state: GlobalState, manifest: Manifest, module: LowRankModule) -> GlobalState:
        """As :meth:`GlobalState.only`."""
        del manifest
        return state.only(module.name)

    def offset(self, state: GlobalState, manifest: Manifest) -> GlobalState:
        """The state itself."""
        del manifest
        return state

    def tensors(self, state: GlobalState) -> Tensors:
        """As :meth:`GlobalState.tensors`."""
        return state.tensors()

    def of_tensors(self, tensors: Stored, manifest: Manifest) -> GlobalState:
        """As :meth:`GlobalState.of_tensors`."""
        return GlobalState.of_tensors(tensors, manifest)
