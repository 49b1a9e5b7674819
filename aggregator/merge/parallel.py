"""The merge of one round by several workers, module by module, with the bits of the merge by one.

No module depends on another, so whoever merges it gets the same bits: threads, processes, or a cluster behind the same
:class:`~concurrent.futures.Executor`. What is large comes back as a file; a pipe would carry it through memory twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import Executor
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from threadpoolctl import threadpool_limits

from aggregator.merge.cost import (
    MEMORY_RATE,
    PRODUCT_RATE,
    Form,
    choose_form,
    full_seconds,
    gram_seconds,
    iteration_seconds,
    svd_seconds,
)
from aggregator.merge.module_state import ModuleState
from aggregator.merge.stored_modules import Shelf, StoredModules, module_tensors, read_module
from aggregator.merge.tensor_file import TensorFile, Tensors, prefixed, view_tensors

if TYPE_CHECKING:
    from aggregator.merge.opened import OpenMerge
    from aggregator.merge.report import MergeReport, ModuleReport
    from protocol.manifest import LowRankModule, Manifest

__all__ = ["largest_first", "merge_round_on", "merge_seconds", "take_module", "write_module"]

StateT = TypeVar("StateT")


def merge_round_on(
    workers: Executor, open_round: Callable[[], OpenMerge[StateT]], scratch: Path
) -> tuple[StateT, MergeReport]:
    """:func:`~aggregator.merge.opened.merge_here` by workers.

    Args:
        workers: Who merges. They see the same ``scratch``, and each keeps one BLAS thread: two of them on a busy
            machine made a small QR 500 times slower.
        open_round: Gives the round, each time the same. It is pickled for every module, so that for processes it
            should name files rather than hold arrays; equal ones are called once a process.
        scratch: Folder for what comes back; empty again in the end.

    Returns:
        The next state, its large arrays mapped from files without a name, and the report.

    Raises:
        MergeError: As :func:`~aggregator.merge.opened.merge_here`.
    """
    given = open_round()
    with TemporaryDirectory(dir=scratch, prefix="merge-") as folder:
        tasks = {
            module: workers.submit(_merge_module, open_round, module, Path(folder) / str(number))
            for number, module in enumerate(largest_first(given.manifest))
        }
        try:
            done = {module.name: _taken(module, *task.result()) for module, task in tasks.items()}
        finally:
            for task in tasks.values():
                task.cancel()
            _opened.cache_clear()  # of a thread's merge: what it has mapped would keep its place on the disk
    return given.finish(done)


def largest_first(manifest: Manifest) -> list[LowRankModule]:
    """The order to hand modules out in, so that no large one is left to the end."""
    return sorted(manifest.low_rank, key=lambda m: -m.out_features * m.in_features)


def merge_seconds(opened: OpenMerge[Any], slots: int) -> float:
    """About how long one worker takes for all modules, seconds: by the counted operations and bytes of the cost model.

    Args:
        opened: The merge.
        slots: Slots that the version handed out.
    """
    return sum(_module_seconds(module, opened.width(module), slots) for module in opened.manifest.low_rank)


def _module_seconds(module: LowRankModule, width: int, slots: int) -> float:
    shape = module.out_features, module.in_features
    reading = 8 * width * sum(shape) / MEMORY_RATE
    form = choose_form(shape, width, slots)
    if form is Form.WHOLE:
        return reading + full_seconds(shape, width)
    if form is Form.FACTORS:
        return reading + gram_seconds(shape, width, slots)
    product = 2 * shape[0] * shape[1] * width / PRODUCT_RATE
    return reading + product + min(iteration_seconds(shape, slots), svd_seconds(shape))


def _merge_module(
    open_round: Callable[[], OpenMerge[Any]], module: LowRankModule, path: Path
) -> tuple[Path, ModuleReport]:
    with threadpool_limits(1):
        state, report = _opened(open_round).merge_module(module)
    write_module(path, module, module_tensors(state))
    return path, report


@lru_cache(maxsize=1)
def _opened(open_round: Callable[[], OpenMerge[Any]]) -> OpenMerge[Any]:
    """The round that this process works on: opening it reads the state's table and every update's header."""
    return open_round()


def write_module(path: Path, module: LowRankModule, tensors: Tensors) -> None:
    """Writes what is stored of a merged module to a file of its own."""
    with path.open("wb") as file:
        for piece in TensorFile(prefixed(module.name, tensors)).pieces():
            file.write(piece)


def take_module(path: Path, module: LowRankModule) -> ModuleState:
    """Maps what :func:`write_module` wrote; the file then has no name, and is gone with its last array."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    path.unlink()
    return StoredModules({module.name: read_module(Shelf(view_tensors(data)), module)})[module.name]


def _taken(module: LowRankModule, path: Path, report: ModuleReport) -> tuple[ModuleState, ModuleReport]:
    return take_module(path, module), report
