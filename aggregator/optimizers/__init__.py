"""Server optimizers: pure ``init``/``update`` pairs on the merged change, their memory stored with the version."""

from aggregator.optimizers.adaptive import Adaptive, SecondMoment
from aggregator.optimizers.controls import Control, Controls, ControlVariates
from aggregator.optimizers.interface import Optimizer
from aggregator.optimizers.memory import Memory
from aggregator.optimizers.momentum import Momentum
from aggregator.optimizers.moving_average import MovingAverage
from aggregator.optimizers.per_kind import PerKind
from aggregator.optimizers.registry import OptimizerName, make_optimizer
from aggregator.optimizers.sgd import Sgd

__all__ = [
    "Adaptive",
    "Control",
    "ControlVariates",
    "Controls",
    "Memory",
    "Momentum",
    "MovingAverage",
    "Optimizer",
    "OptimizerName",
    "PerKind",
    "SecondMoment",
    "Sgd",
    "make_optimizer",
]
