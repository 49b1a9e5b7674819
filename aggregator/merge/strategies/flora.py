"""FLoRA: clients start from nothing on top of the model, and their adapters are stacked into it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, final

from aggregator.merge import Factors, GlobalState, Increment, MergeError, stack
from aggregator.merge.strategies.cohort import TrainedCohort, check_step
from aggregator.merge.strategies.orders import Order, make_ordered_handout
from aggregator.merge.strategies.reports import report_step

if TYPE_CHECKING:
    from aggregator.merge import ClientUpdate, MergeReport
    from aggregator.merge.strategies.interface import Property, Requirement
    from protocol.manifest import Manifest
    from protocol.payload import AdapterTensors

__all__ = ["Flora"]


@final
class Flora:
    """``M' = M + [p_1·B̂_1 … p_K·B̂_K][A_1; …; A_K]``, each client from ``B̂ = 0`` and fresh rows of ``A``.

    Exact, in all properties. The price is paid by the devices: every one needs all of ``M`` behind its fresh slots, as
    the residual here (the paper folds it into the base weights, which a quantised base does not survive); ``A`` gets no
    gradient at the first step, and optimizer states start anew.

    Reference: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations", 2024, arXiv:2409.05976, section 3.
    """

    fails: ClassVar[frozenset[Property]] = frozenset()
    requires: ClassVar[frozenset[Requirement]] = frozenset()

    def start(self, manifest: Manifest, offset: GlobalState, seed: int) -> GlobalState:
        """The offset itself."""
        del manifest, seed
        return offset

    def handout(self, state: GlobalState, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
        """``rank_max`` fresh slots, the model behind them."""
        return make_ordered_handout(Order.FRESH, state, manifest, slots, seed)

    def merge(
        self,
        state: GlobalState,
        manifest: Manifest,
        handout: AdapterTensors,
        updates: Iterable[ClientUpdate],
        *,
        step: float = 1.0,
    ) -> tuple[GlobalState, MergeReport]:
        """Adds the stack; see :meth:`Strategy.merge`."""
        check_step(step)
        cohort = TrainedCohort.of(manifest, handout, updates)
        merged = state.add(
            Increment(
                low_rank={module.name: _stacked(cohort, module.name).scaled(step) for module in manifest.low_rank},
                dense={name: step * cohort.dense_change(name) for name in state.dense},
            )
        )
        return merged, report_step(state, merged, cohort, step)

    def offset(self, state: GlobalState, manifest: Manifest) -> GlobalState:
        """The state itself."""
        del manifest
        return state

    def to_bytes(self, state: GlobalState) -> bytes:
        """As :meth:`GlobalState.to_bytes`."""
        return state.to_bytes()

    def from_bytes(self, data: bytes, manifest: Manifest) -> GlobalState:
        """As :meth:`GlobalState.from_bytes`."""
        return GlobalState.from_bytes(data, manifest)


def _stacked(cohort: TrainedCohort, name: str) -> Factors:
    parts = []
    for update in cohort.updates:
        if cohort.handed(update, name)[0].any():
            raise MergeError(
                f"update of {update.client!r}: {name!r}: it trained slots of the model itself; stacking needs fresh "
                "ones, a hand-out made by this strategy"
            )
        B, A = cohort.trained(update, name)
        parts.append(Factors(cohort.share(update) * B, A))
    return stack(parts)
