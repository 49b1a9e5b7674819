"""A merge that is ready to be done: its modules in any order and by anybody, the rest at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from aggregator.merge.module_state import ModuleState
    from aggregator.merge.report import MergeReport, ModuleReport
    from protocol.manifest import LowRankModule, Manifest

__all__ = ["OpenMerge", "merge_here"]

StateT = TypeVar("StateT")
StateT_co = TypeVar("StateT_co", covariant=True)


class OpenMerge(Protocol[StateT_co]):
    """One merge of one checked cohort, whatever the rule. It holds no result: each method is a pure function."""

    @property
    def manifest(self) -> Manifest:
        """The run's universe."""

    def width(self, module: LowRankModule) -> int:
        """Terms of one module's sum, of state and cohort: what the work grows with."""

    def merge_module(self, module: LowRankModule) -> tuple[ModuleState, ModuleReport]:
        """What becomes of one module; it depends on no other module's.

        Raises:
            MergeError: An update cannot be merged; names the client.
        """

    def finish(self, modules: Mapping[str, tuple[ModuleState, ModuleReport]]) -> tuple[StateT_co, MergeReport]:
        """The next state, from what :meth:`merge_module` gave for every module.

        Raises:
            MergeError: As :meth:`merge_module`.
        """


def merge_here(opened: OpenMerge[StateT]) -> tuple[StateT, MergeReport]:
    """Merges all modules in this process, one after the other.

    With one BLAS thread: on a busy machine two of them made a small decomposition 500 times slower.
    """
    with threadpool_limits(1):
        return opened.finish({module.name: opened.merge_module(module) for module in opened.manifest.low_rank})
