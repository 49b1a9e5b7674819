"""FedAdagrad, FedAdam and FedYogi for dense tensors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, final

import numpy as np

from aggregator.merge import GlobalState
from aggregator.optimizers.memory import Memory
from aggregator.optimizers.settings import check_positive, check_share, refuse_module

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import Manifest

__all__ = ["Adaptive", "SecondMoment"]


class SecondMoment(StrEnum):
    """How ``v`` follows ``D²``."""

    ADAGRAD = "adagrad"
    """``v + D²``."""
    ADAM = "adam"
    """``β₂·v + (1 − β₂)·D²``."""
    YOGI = "yogi"
    """``v − (1 − β₂)·D²·sign(v − D²)``."""


@final
@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """``u' = β₁·u + (1 − β₁)·D``, ``v'`` as :attr:`rule` says, ``Δ = η·u' / (√v' + τ)``; ``v`` starts at ``τ²``.

    Entry by entry, so for dense tensors alone: on factors it would depend on the gauge, and a product held as factors
    has no entries. Combine it with another optimizer by :class:`~aggregator.optimizers.PerKind`.

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295, algorithm 2.
    """

    rule: SecondMoment
    """FedAdagrad, FedAdam or FedYogi."""
    learning_rate: float
    """``η``, in units of the weights: how far an entry moves in a round."""
    beta1: float = 0.9
    """``β₁``, in [0, 1); the paper takes 0 for FedAdagrad."""
    beta2: float = 0.99
    """``β₂``, in [0, 1); unused by FedAdagrad."""
    tau: float = 1e-3
    """``τ``, degree of adaptivity, in units of ``D``."""

    def __post_init__(self) -> None:
        check_positive(learning_rate=self.learning_rate, tau=self.tau)
        check_share(beta1=self.beta1, beta2=self.beta2)

    def init(self, manifest: Manifest) -> Memory:
        """``u = 0``, ``v = τ²``."""
        if manifest.low_rank:
            refuse_module(manifest.low_rank[0].name)
        second = {tensor.name: np.full(tensor.shape, self.tau**2) for tensor in manifest.dense}
        return Memory(steps=0, momentum=GlobalState.zeros(manifest), second=second)

    def update(self, change: GlobalState, memory: Memory) -> tuple[GlobalState, Memory]:
        """``Δ``, and ``u'`` and ``v'``."""
        if change.low_rank:
            refuse_module(next(iter(change.low_rank)))
        first, second, step = dict(memory.momentum.dense), dict(memory.second), {}
        for name, D in change.dense.items():
            first[name] = self.beta1 * first[name] + (1.0 - self.beta1) * D
            second[name] = self._second(second[name], D**2)
            step[name] = self.learning_rate * first[name] / (np.sqrt(second[name]) + self.tau)
        momentum = GlobalState(low_rank={}, dense=first)
        return GlobalState(low_rank={}, dense=step), Memory(steps=memory.steps + 1, momentum=momentum, second=second)

    def _second(self, v: NDArray[np.float64], square: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.rule is SecondMoment.ADAGRAD:
            return v + square
        if self.rule is SecondMoment.ADAM:
            return self.beta2 * v + (1.0 - self.beta2) * square
        return v - (1.0 - self.beta2) * square * np.sign(v - square)
