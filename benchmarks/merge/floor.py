"""The bare BLAS and LAPACK calls that a merge cannot do without, at its shapes: what is left is our own overhead."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from aggregator.merge import Factors, LowRank, MergedModule
from aggregator.merge.subspace import DEPTH, OVERSAMPLING
from benchmarks.merge.cohorts import StoredCase

__all__ = ["floor_seconds"]


def floor_seconds(stored: StoredCase, merged: MergedModule, slots: int) -> float:
    """Seconds of the calls alone, on arrays of the merge's sizes, each with its output at hand.

    Args:
        stored: The merge.
        merged: What came of it: its form says which way it went.
        slots: Rank of the hand-out.
    """
    value, (rows, columns) = merged.state.value, stored.case.shape
    if isinstance(value, LowRank):
        width = stored.base.width + stored.cohort().width(stored.module)
        return _qr_calls(rows, columns, min(width, rows, columns))
    if isinstance(value, Factors):
        return _gram_calls(value, merged, slots)
    width = stored.base.width + stored.cohort().width(stored.module)
    left, right = np.ones((rows, 1024)), np.ones((1024, columns))
    out = np.empty((rows, columns))
    product = _seconds(lambda: np.matmul(left, right, out=out)) * width / 1024
    return product + _iteration(value, merged.leading.cycles, slots)


def _qr_calls(rows: int, columns: int, width: int) -> float:
    rng = np.random.default_rng(0)
    left, right, core = (rng.standard_normal((size, width)) for size in (rows, columns, width))
    calls: tuple[Callable[[], object], ...] = (
        lambda: np.linalg.qr(left),
        lambda: np.linalg.qr(right),
        lambda: np.linalg.svd(core),
        lambda: left @ core,
        lambda: right @ core,
    )
    return sum(_seconds(call) for call in calls)


def _gram_calls(value: Factors, merged: MergedModule, slots: int) -> float:
    left, right, width = value.left, value.right, value.width
    core = np.random.default_rng(0).standard_normal((width, width))
    gram, block = core @ core.T, core[:, :slots].copy()
    calls: list[Callable[[], object]] = [
        lambda: left.T @ left,
        lambda: right @ right.T,
        lambda: np.linalg.cholesky(gram),
        lambda: np.linalg.cholesky(gram),
        lambda: core @ gram,
        lambda: np.linalg.solve(core, block),
        *[lambda: left @ block, lambda: right.T @ block] * 2,
    ]
    if merged.leading.cycles == 0:
        calls.append(lambda: np.linalg.svd(core))
    return sum(_seconds(call) for call in calls) + _iteration(core, merged.leading.cycles, slots)


def _iteration(matrix: np.ndarray, cycles: int, slots: int) -> float:
    if not cycles:
        return 0.0
    block, images = np.ones((matrix.shape[1], slots + OVERSAMPLING)), np.ones((matrix.shape[0], slots + OVERSAMPLING))
    pair = _seconds(lambda: matrix @ block) + _seconds(lambda: matrix.T @ images)
    return pair * (1 + cycles * (DEPTH - 1))


def _seconds(call: Callable[[], object]) -> float:
    """The best of three: what the machine can do."""
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)
