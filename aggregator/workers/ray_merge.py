"""The merge of one round on a Ray cluster that shares no file with this machine, with the bits of the merge by one.

To each task goes what its module needs: its part of the state and its bytes of every update. Only as many modules are
under way as the cluster can work on, and what comes back is written to a file at once, so that the object store never
holds a whole cohort or a whole state.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aggregator.merge.parallel import largest_first, take_module, write_module
from aggregator.merge.stored_modules import module_tensors
from aggregator.merge.strategies.module_job import ModuleJob

if TYPE_CHECKING:
    from aggregator.merge import MergeReport, ModuleReport, ModuleState
    from aggregator.merge.strategies import RoundInput, Strategy
    from aggregator.merge.tensor_file import Tensors
    from aggregator.workers.ray_executor import RayBytes, RayExecutor
    from protocol.manifest import LowRankModule

__all__ = ["merge_round_sent"]

StateT = TypeVar("StateT")
Merged = tuple["Tensors", "ModuleReport"]


def merge_round_sent(
    workers: RayExecutor, strategy: Strategy[StateT], state: StateT, given: RoundInput, scratch: Path
) -> tuple[StateT, MergeReport]:
    """:meth:`~aggregator.merge.strategies.Strategy.merge` by a cluster.

    Bits depend on the BLAS library and on the kind of CPU, so they are the same if the nodes are alike.

    Args:
        workers: The cluster.
        strategy: The rule.
        state: The version that was handed out.
        given: What came back, encoded.
        scratch: Folder for what comes back merged; empty again in the end.

    Returns:
        The next state, its large arrays mapped from files without a name, and the report.

    Raises:
        MergeError: As :meth:`~aggregator.merge.strategies.Strategy.merge`.
        BrokenExecutor: The cluster failed, or a node of it: nothing is lost, and the merge can be tried again.
    """
    opened = strategy.open(state, given)
    waiting = largest_first(given.manifest)
    running: dict[Future[Merged], LowRankModule] = {}
    done: dict[str, tuple[ModuleState, ModuleReport]] = {}
    with tempfile.TemporaryDirectory(dir=scratch, prefix="merge-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) <= workers.cpus:  # one more than can run: it travels meanwhile
                    module = waiting.pop(0)
                    running[_sent(workers, strategy, state, given, module)] = module
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    module = running.pop(future)
                    done[module.name] = _taken(future, module, Path(folder) / str(len(done)))
        finally:
            for future in running:
                future.cancel()
    return opened.finish(done)


def _sent(
    workers: RayExecutor, strategy: Strategy[StateT], state: StateT, given: RoundInput, module: LowRankModule
) -> Future[Merged]:
    pieces: list[RayBytes] = []

    def put(data: Any) -> RayBytes:
        pieces.append(workers.put(data))
        return pieces[-1]

    job = ModuleJob.of(strategy, state, given, module, put)
    return workers.submit(_merge, job, *(piece.ref for piece in pieces))


def _merge(job: ModuleJob[Any], *pieces: object) -> Merged:
    """Merges on a node. The pieces are what the job reads: as arguments, they are there before the task starts."""
    del pieces
    state, report = job.merge(Path(tempfile.gettempdir()))
    return module_tensors(state), report


def _taken(future: Future[Merged], module: LowRankModule, path: Path) -> tuple[ModuleState, ModuleReport]:
    try:
        tensors, report = future.result()
    except OSError as error:  # of the node's disk: it is not this one's that failed
        raise BrokenExecutor(f"{module.name!r}: a node of the cluster failed: {error}") from error
    write_module(path, module, tensors)
    return take_module(path, module), report
