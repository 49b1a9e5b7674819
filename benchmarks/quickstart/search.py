"""Uses the result: searches the held-out functions of all devices with the global adapter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data.functions import Function
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.payload import AdapterTensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FunctionSearch", "answer_queries"]

_EXAMPLE = "shortest path between two nodes"
_BEST = 5


class FunctionSearch:
    """An index of functions.

    Args:
        trainer: Holds the base model.
        adapter: What to search with.
        functions: What is searched.
        pool: ``[n, d]`` their vectors, by this adapter.
    """

    def __init__(
        self,
        trainer: TorchTrainer,
        adapter: AdapterTensors,
        functions: Sequence[Function],
        pool: NDArray[np.float32],
    ) -> None:
        trainer.install(adapter, adapter.rank)
        self._trainer, self._functions, self._pool = trainer, functions, pool

    def best(self, query: str, count: int = _BEST) -> list[tuple[float, Function]]:
        """The functions whose bodies are closest to a query, with their cosines."""
        scores = self._pool @ self._trainer.embed([query])[0]
        return [(float(scores[index]), self._functions[index]) for index in np.argsort(-scores)[:count]]


def answer_queries(search: FunctionSearch, query: str | None) -> None:
    """Searches for what was given; else asks, on a terminal, until an empty line; else shows an example."""
    if query is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _show(search, query or _EXAMPLE)
        return
    while query := _ask():
        _show(search, query)


def _ask() -> str:
    try:
        return input("\nWhat should the function do? (empty line: end) ").strip()
    except EOFError:
        return ""


def _show(search: FunctionSearch, query: str) -> None:
    print(f"\nbest of the held-out functions for {query!r}:")
    for score, function in search.best(query):
        print(f"  {score:.2f}  {function.package}/{function.file}:{function.line}  {function.name}")
        print(f"        {function.query[:90]}")
