"""How much anonymous memory a merge takes: watched in a process of its own, which holds nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from benchmarks.anonymous_memory import peak_growth_bytes

if TYPE_CHECKING:
    from benchmarks.merge.cohorts import StoredCase

    Merge = Callable[[StoredCase, Path], object]

__all__ = ["everything_kept", "peak_bytes", "streamed"]


def peak_bytes(load: Callable[[], Merge], stored: StoredCase, scratch: Path) -> int:
    """The most anonymous memory that a merge adds to its process.

    Args:
        load: :func:`streamed` or :func:`everything_kept`; what it imports does not count.
        stored: What to merge.
        scratch: Folder for what is large.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_watched, load, stored, scratch).result()


def streamed() -> Merge:
    """Ours: devices are read from files, one after the other."""
    from benchmarks.merge.ours import merge_ours

    return merge_ours


def everything_kept() -> Merge:
    """All devices in memory and one QR of them all, as NVFlare does it."""
    import torch

    from benchmarks.competitors.nvflare import merge_by_qr
    from benchmarks.merge.contenders import terms_of

    torch.set_num_threads(1)
    return lambda stored, scratch: merge_by_qr(terms_of(stored), stored.handout.rank)


def _watched(load: Callable[[], Merge], stored: StoredCase, scratch: Path) -> int:
    merge = load()
    with threadpool_limits(1):
        return peak_growth_bytes(lambda: merge(stored, scratch))
