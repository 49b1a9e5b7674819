"""Processes for linear algebra: spawned, of one BLAS thread each, and gone when the one that started them is.

They are spawned, not forked: a fork would copy libzmq's threads' locks.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

from threadpoolctl import threadpool_limits

__all__ = ["process_pool"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What the BLAS libraries read as they are loaded."""


def process_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of them; each starts when there is work for it.

    Args:
        processes: How many at most.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)


def _start_worker() -> None:
    """Two BLAS threads on a busy machine made a small QR 500 times slower: one per worker."""
    os.environ.update(dict.fromkeys(_THREADS, "1"))  # for libraries that are not loaded yet: with spawn, none is
    threadpool_limits(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
