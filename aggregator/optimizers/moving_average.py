"""Momentum as a moving average of the merged changes of dense tensors, each at its own pace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from aggregator.merge import GlobalState
from aggregator.optimizers.memory import Memory
from aggregator.optimizers.settings import check_positive, check_share, refuse_module

if TYPE_CHECKING:
    from protocol.manifest import Manifest

__all__ = ["MovingAverage"]


@final
@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """``v_t = (1 − w_t)·v_{t−1} + w_t·D_t``, ``w_t = (1 − β) / (1 − β^t)``, ``ΔM = η·v_t``, ``t`` from 1.

    The average of all changes, the last ones counting most: the first step is the change itself. A tensor that is not
    in the change rests: neither it nor its average moves, and its ``t`` stays.

    This is FedPepTAO's server step, updated once a round. The code released with it averages the differences
    ``D_{t−1} − D_t``, which telescopes to a tenth of the way from ``D_t`` to the same average, and passes one average
    on from client to client, so that the order of arrival decides.

    Reference: Che et al. (FedPepTAO), 2023, arXiv:2310.15080; the factor ``1 / (1 − β^t)`` is that of Kingma, Ba, 2015,
    arXiv:1412.6980, section 3.
    """

    learning_rate: float = 1.0
    """``η``."""
    beta: float = 0.9
    """``β``, in [0, 1)."""

    def __post_init__(self) -> None:
        check_positive(learning_rate=self.learning_rate)
        check_share(beta=self.beta)

    def init(self, manifest: Manifest) -> Memory:
        """No average yet."""
        if manifest.low_rank:
            refuse_module(manifest.low_rank[0].name)
        return Memory.zeros(manifest)

    def update(self, change: GlobalState, memory: Memory) -> tuple[GlobalState, Memory]:
        """``η·v_t`` of the tensors that are in the change, and all averages."""
        averages, counts, step = dict(memory.momentum.dense), dict(memory.counts), {}
        for name, D in change.dense.items():
            counts[name] = counts.get(name, 0) + 1
            share = (1.0 - self.beta) / (1.0 - self.beta ** counts[name])
            averages[name] = (1.0 - share) * averages[name] + share * D
            step[name] = self.learning_rate * averages[name]
        momentum = GlobalState(low_rank={}, dense=averages)
        after = replace(memory, steps=memory.steps + 1, momentum=momentum, counts=counts)
        return GlobalState(low_rank={}, dense=step), after
