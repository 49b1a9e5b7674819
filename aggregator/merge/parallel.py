"""The merge of one round by several workers, module by module, with the bits of the merge by one.

No module depends on another, so whoever merges it gets the same bits: threads, processes, or a cluster behind the same
:class:`~concurrent.futures.Executor`. What is large comes back as a file; a pipe would carry it through memory twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from aggregator.merge.rounds import Round
from aggregator.merge.state import GlobalState, ModuleState, Shelf, module_tensors, read_module
from aggregator.merge.tensor_file import view_tensors

if TYPE_CHECKING:
    from aggregator.merge.report import MergeReport, ModuleReport
    from protocol.manifest import LowRankModule

__all__ = ["merge_round_on"]


def merge_round_on(
    workers: Executor, open_round: Callable[[], Round], scratch: Path
) -> tuple[GlobalState, MergeReport]:
    """:func:`~aggregator.merge.rounds.merge_round` by workers.

    Args:
        workers: Who merges. They see the same ``scratch``, and each keeps one BLAS thread: two of them on a busy
            machine made a small QR 500 times slower.
        open_round: Gives the round, each time the same. It is pickled for every module, so that for processes it
            should name files rather than hold arrays.
        scratch: Folder for what comes back; empty again in the end.

    Returns:
        The next state, its large arrays mapped from files without a name, and the report.

    Raises:
        MergeError: As :func:`~aggregator.merge.rounds.merge_round`.
    """
    given = open_round()
    largest_first = sorted(given.manifest.low_rank, key=lambda m: -m.out_features * m.in_features)
    with TemporaryDirectory(dir=scratch, prefix="merge-") as folder:
        tasks = {
            module: workers.submit(_merge_module, open_round, module, Path(folder) / str(number))
            for number, module in enumerate(largest_first)
        }
        try:
            done = {module.name: _fetched(module, *task.result()) for module, task in tasks.items()}
        finally:
            for task in tasks.values():
                task.cancel()
    return given.finish(done)


def _merge_module(open_round: Callable[[], Round], module: LowRankModule, path: Path) -> tuple[Path, ModuleReport]:
    with threadpool_limits(1):
        state, report = open_round().merge_module(module)
    save_file({f"{module.name}/{key}": np.ascontiguousarray(value) for key, value in module_tensors(state)}, path)
    return path, report


def _fetched(module: LowRankModule, path: Path, report: ModuleReport) -> tuple[ModuleState, ModuleReport]:
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    path.unlink()
    return read_module(Shelf(view_tensors(data)), module), report
