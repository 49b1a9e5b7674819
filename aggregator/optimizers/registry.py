"""The server optimizers by name, made for low-rank modules and dense tensors alike."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from aggregator.optimizers.adaptive import Adaptive, SecondMoment
from aggregator.optimizers.momentum import Momentum
from aggregator.optimizers.moving_average import MovingAverage
from aggregator.optimizers.per_kind import PerKind
from aggregator.optimizers.sgd import Sgd

if TYPE_CHECKING:
    from aggregator.optimizers.interface import Optimizer

__all__ = ["OptimizerName", "make_optimizer"]


class OptimizerName(StrEnum):
    """What a run is told to make of the merged change."""

    SGD = "sgd"
    """The default: a step along it."""
    MOMENTUM = "momentum"
    """A step along a running sum (FedAvgM), for all trainables."""
    CONTROLLED_MOMENTUM = "controlled-momentum"
    """A step along a moving average of changes that are corrected by each device's control variate (FedPepTAO): dense
    tensors alone. The corrections are :class:`~aggregator.optimizers.ControlVariates`'s."""
    ADAGRAD = "adagrad"
    """FedAdagrad for dense tensors, a plain step for low-rank modules."""
    ADAM = "adam"
    """FedAdam for dense tensors, a plain step for low-rank modules."""
    YOGI = "yogi"
    """FedYogi for dense tensors, a plain step for low-rank modules."""

    @property
    def adaptive(self) -> bool:
        """Whether dense tensors are stepped entry by entry."""
        return self.value in {rule.value for rule in SecondMoment}

    @property
    def stateful(self) -> bool:
        """Whether it remembers anything from round to round."""
        return self is not OptimizerName.SGD


def make_optimizer(
    name: OptimizerName,
    *,
    learning_rate: float,
    dense_learning_rate: float,
    beta1: float,
    beta2: float,
    tau: float,
    rank_max: int | None,
) -> Optimizer:
    """The optimizer of this name.

    Args:
        name: Which.
        learning_rate: ``η`` of a step along the change, or its running sum.
        dense_learning_rate: ``η`` of the adaptive ones, in units of the weights.
        beta1: Momentum's ``β``, and ``β₁`` of the adaptive ones.
        beta2: ``β₂`` of the adaptive ones.
        tau: ``τ`` of the adaptive ones.
        rank_max: Directions kept of each module's momentum; None: all.

    Raises:
        MergeError: A number is out of range.

    Example:
        >>> numbers = {"dense_learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "rank_max": None}
        >>> make_optimizer(OptimizerName.MOMENTUM, learning_rate=1.0, **numbers)
        Momentum(learning_rate=1.0, beta=0.9, rank_max=None)
    """
    if name is OptimizerName.MOMENTUM:
        return Momentum(learning_rate=learning_rate, beta=beta1, rank_max=rank_max)
    if name is OptimizerName.CONTROLLED_MOMENTUM:
        return MovingAverage(learning_rate=learning_rate, beta=beta1)
    plain = Sgd(learning_rate=learning_rate)
    if not name.adaptive:
        return plain
    rule = SecondMoment(name.value)
    dense = Adaptive(rule=rule, learning_rate=dense_learning_rate, beta1=beta1, beta2=beta2, tau=tau)
    return PerKind(low_rank=plain, dense=dense)
