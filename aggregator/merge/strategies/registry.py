"""The strategies by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from aggregator.merge import MergeError
from aggregator.merge.strategies.delta import Delta
from aggregator.merge.strategies.fedit import FedIt
from aggregator.merge.strategies.ffa import Ffa
from aggregator.merge.strategies.flora import Flora
from aggregator.merge.strategies.hetlora import HetLora
from aggregator.merge.strategies.hlora import Hlora
from aggregator.merge.strategies.interface import Strategy
from aggregator.merge.strategies.orders import Order
from aggregator.merge.strategies.raflora import Raflora
from aggregator.merge.strategies.zero_padding import ZeroPadding

__all__ = ["STRATEGIES", "make_strategy"]

STRATEGIES: Mapping[str, Callable[[], Strategy[Any]]] = MappingProxyType(
    {
        "delta": Delta,
        "delta-rotate": lambda: Delta(order=Order.ROTATE),
        "delta-fresh": lambda: Delta(order=Order.FRESH, residual=True),
        "hlora": Hlora,
        "raflora": Raflora,
        "flora": Flora,
        "zero-padding": ZeroPadding,
        "hetlora": HetLora,
        "fedit": FedIt,
        "ffa": Ffa,
    }
)
"""Each makes the strategy with its default settings."""


def make_strategy(name: str) -> Strategy[Any]:
    """The strategy of this name.

    Raises:
        MergeError: There is none; names those that there are.

    Example:
        >>> make_strategy("delta").fails
        frozenset()
    """
    if name not in STRATEGIES:
        raise MergeError(f"unknown merge strategy {name!r}; there are {', '.join(STRATEGIES)}")
    return STRATEGIES[name]()
