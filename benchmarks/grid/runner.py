"""Runs cells, several at a time, in processes of this machine or on a Ray cluster."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

from threadpoolctl import threadpool_limits

from benchmarks.command_line import BenchmarkError
from benchmarks.grid.cell_file import Record, title
from benchmarks.grid.workers import Processes, Ray, Workers
from benchmarks.simulation import StalledError
from edge_client.errors import EdgeClientError

__all__ = ["one_thread", "or_failure", "run_cells"]

Work = TypeVar("Work")


def run_cells(run: Callable[[Work], Record], work: Sequence[Work], workers: Workers) -> Iterator[Record]:
    """Runs cells.

    Args:
        run: Runs one; a function of a module, that a process which knows nothing yet can import.
        work: All that it needs for each cell, to be pickled. Folders that it names, every machine has to have.
        workers: Who runs them.

    Yields:
        Each record once it is there.

    Raises:
        BenchmarkError: A process died, or the cluster failed.
    """
    if not work:
        return
    if workers == Processes(1):
        yield from map(run, work)
        return
    try:
        with _pool(workers, len(work)) as pool:
            futures: list[Future[Record]] = [pool.submit(run, one) for one in work]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    except BrokenExecutor as error:
        raise BenchmarkError(f"cells cannot be run there: {error}; start again, finished cells are kept") from error


def _pool(workers: Workers, cells: int) -> Executor:
    match workers:
        case Processes(count=count):
            spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
            return ProcessPoolExecutor(min(count, cells), mp_context=spawn)
        case Ray(address=address):
            from aggregator.workers.ray_executor import RayExecutor

            return RayExecutor(address)


def or_failure(cell: object, run: Callable[[], Record]) -> Record:
    """What came of a cell; if training diverged, or went so far that every update was refused, its ``failure``.

    Args:
        cell: A frozen dataclass.
        run: Runs it.

    Raises:
        BenchmarkError: It broke off for another reason, such as a full disk, which another try need not meet.
    """
    try:
        return run()
    except RuntimeError as error:
        if not isinstance(error, StalledError) and not isinstance(error.__cause__, EdgeClientError):
            raise BenchmarkError(f"{title(cell)}: {error}; start again, finished cells are kept") from error
        return {**asdict(cell), "failure": str(error)}  # type: ignore[call-overload]  # any dataclass


@contextmanager
def one_thread() -> Iterator[None]:
    """Cells are what runs side by side, and two threads of torch's or of BLAS's would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
