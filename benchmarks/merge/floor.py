"""The bare BLAS and LAPACK calls that a merge cannot do without, at its shapes: what is left is our own overhead.

They are those of the way that the merge went, each with its own dtype, on memory that has been touched before. Not in
it: reading and decoding updates, copies and conversions, additions, fresh memory, and Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from aggregator.merge import Factors, LowRank, MergedModule
from aggregator.merge.cost import is_core_iterated
from aggregator.merge.subspace import CHECK_EVERY, Steps, basis_columns, block_columns
from benchmarks.merge.cohorts import StoredCase
from benchmarks.merge.settings import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["floor_seconds"]

Calls = Iterator[Callable[[], object]]

_PRODUCT_WIDTH = 1024
"""Of the products that a wide sum is multiplied out with."""


def floor_seconds(stored: StoredCase, merged: MergedModule, slots: int) -> float:
    """Seconds of the calls alone, on arrays of the merge's sizes.

    Args:
        stored: The merge.
        merged: What came of it: its form says which way it went.
        slots: Rank of the hand-out.
    """
    value, (rows, columns) = merged.state.value, stored.case.shape
    width = stored.base.width + stored.cohort().width(stored.module) + _first_order(stored)
    if isinstance(value, LowRank):
        return _sum(_qr_calls(rows, columns, min(width, rows, columns)))
    if isinstance(value, Factors):
        return _sum(_gram_calls(value, merged.leading.steps, slots))
    left, right, out = np.ones((rows, _PRODUCT_WIDTH)), np.ones((_PRODUCT_WIDTH, columns)), np.empty((rows, columns))
    product = _seconds(lambda: np.matmul(left, right, out=out)) * width / _PRODUCT_WIDTH
    return product + _sum(_iteration_calls(value if rows >= columns else value.T, merged.leading.steps, slots))


def _first_order(stored: StoredCase) -> int:
    """Terms of ``(Σ p·pad dB̂)·A₀ + B̂₀·(Σ p·pad dA)``: a delta has them beside those that are its devices' own."""
    return 2 * stored.handout.rank if stored.case.problem is Problem.DELTA else 0


def _qr_calls(rows: int, columns: int, width: int) -> Calls:
    left, right, core = _random(rows, width), _random(columns, width), _random(width, width)
    yield lambda: np.linalg.qr(left)
    yield lambda: np.linalg.qr(right)
    yield lambda: np.linalg.svd(core)
    yield lambda: left @ core
    yield lambda: right @ core


def _gram_calls(value: Factors, steps: Steps, slots: int) -> Calls:
    value = value.transposed() if value.shape[0] > value.shape[1] else value
    left, right, width = value.left, value.right, value.width
    core, block, Q = _random(width, width), _random(width, slots), _random(left.shape[0], slots)
    gram = core @ core.T
    yield lambda: left.T @ left
    yield lambda: right @ right.T
    yield lambda: np.linalg.cholesky(gram)
    yield lambda: core @ gram
    if is_core_iterated(width, slots):
        yield lambda: np.linalg.cholesky(gram)
        yield from _iteration_calls(core, steps, slots)
    else:
        yield lambda: core @ gram
        yield lambda: np.linalg.eigh(gram)
    yield lambda: gram @ (core.T @ block)
    yield lambda: left @ block
    yield from _orthonormal_calls(Q)
    yield lambda: (Q.T @ left) @ right
    yield from _triplet_calls(Q, _random(slots, right.shape[1]))


def _iteration_calls(matrix: NDArray[np.float64], steps: Steps, slots: int) -> Calls:
    if not steps.single:
        yield lambda: np.linalg.svd(matrix, full_matrices=False)
        return
    yield from _search_calls(matrix.astype(np.float32), steps.single, slots)
    if steps.double:
        yield from _search_calls(matrix, steps.double, slots)
    Q, vectors = _random(matrix.shape[0], slots), _random(matrix.shape[1], slots)
    yield lambda: matrix @ vectors
    yield from _orthonormal_calls(Q)
    yield lambda: Q.T @ matrix
    yield from _triplet_calls(Q, _random(slots, matrix.shape[1]))


def _search_calls(matrix: NDArray[Any], steps: int, slots: int) -> Calls:
    (rows, columns), block = matrix.shape, block_columns(slots, matrix.size)
    room = basis_columns(slots, columns)
    basis, images, fresh = _random(room, columns).T, _random(room, rows).T, _random(columns, block)
    narrow, image = fresh.astype(matrix.dtype), images[:, :block].astype(matrix.dtype)
    gram, turn = images.T @ images, _random(room, slots)
    for step in range(1, steps + 1):
        width = min(step * block, room)
        yield lambda: matrix @ narrow
        yield partial(np.matmul, images[:, :width].T, images[:, :block])
        if step % CHECK_EVERY == 0 and width > slots:
            yield partial(np.linalg.eigvalsh, gram[:width, :width])
        if step < steps:
            yield lambda: matrix.T @ image
            yield lambda: np.linalg.qr(fresh)
            yield from _orthonormal_calls(fresh)
            for _ in range(2):
                yield partial(np.matmul, basis[:, :width].T, fresh)
                yield partial(np.matmul, basis[:, :width], turn[:width, :block])
    yield partial(np.linalg.eigh, gram[:width, :width])
    yield partial(np.matmul, basis[:, :width], turn[:width])


def _triplet_calls(Q: NDArray[np.float64], projected: NDArray[np.float64]) -> Calls:
    core = _random(len(projected), len(projected))
    gram = core @ core.T
    yield lambda: projected @ projected.T
    yield lambda: np.linalg.inv(np.linalg.cholesky(gram))
    yield lambda: np.linalg.svd(core)
    yield lambda: Q @ core
    yield lambda: core @ projected


def _orthonormal_calls(columns: NDArray[np.float64]) -> Calls:
    gram = columns.T @ columns
    yield lambda: columns.T @ columns
    yield lambda: np.linalg.inv(np.linalg.cholesky(gram))
    yield lambda: columns @ gram


def _random(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal(shape)


def _sum(calls: Calls) -> float:
    return sum(_seconds(call) for call in calls)


def _seconds(call: Callable[[], object]) -> float:
    """The best of three: what the machine can do."""
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return min(spent)
