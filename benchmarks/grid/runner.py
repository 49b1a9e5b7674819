"""Runs cells, several at a time in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

from threadpoolctl import threadpool_limits

from benchmarks.command_line import BenchmarkError
from benchmarks.grid.cell_file import Record, title
from benchmarks.simulation import StalledError
from edge_client.errors import EdgeClientError

__all__ = ["one_thread", "or_failure", "run_cells"]

Work = TypeVar("Work")


def run_cells(run: Callable[[Work], Record], work: Sequence[Work], workers: int) -> Iterator[Record]:
    """Runs cells.

    Args:
        run: Runs one; a function of a module, that a process which knows nothing yet can import.
        work: All that it needs for each cell, to be pickled.
        workers: Processes; 1: this one.

    Yields:
        Each record once it is there.

    Raises:
        BenchmarkError: A process died.
    """
    workers = min(workers, len(work))
    if workers <= 1:
        yield from map(run, work)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: list[Future[Record]] = [pool.submit(run, one) for one in work]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise BenchmarkError("a process that ran cells was killed; start again, finished cells are kept") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
