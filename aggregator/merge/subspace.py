"""The leading singular triplets of a matrix by block Krylov iteration, warm-started from a subspace that was close.

From a block ``V`` the basis ``[V, (MᵀM)V, (MᵀM)²V, …]`` is built, orthonormal all along; the singular triplets of
``M`` on it (Rayleigh–Ritz) give the next block. What a hand-out needs is little: not vectors to the last digit, which
close singular values do not have, but an approximation ``T`` of the least error. ``T`` being a projection of ``M``, its
error is known exactly, ``‖M−T‖² = ‖M‖² − ‖T‖²``, and the iteration ends when ``‖T‖²`` no longer grows.

Reference: Musco and Musco (2015), Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
Decomposition, arXiv:1504.05477, §2: the block needs no gap behind ``k``, and the error in ``‖M−T‖`` falls with the
square of the number of products where subspace iteration's falls with the number.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.algebra import LowRank, canonical

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["leading_triplets", "orthonormal", "ritz_triplets"]

OVERSAMPLING = 16
"""Columns of a block beyond ``k``: they widen the gap that convergence lives on."""
DEPTH = 4
"""Blocks of a basis before it is restarted from its best ``k`` and the oversampling."""
TOLERANCE = 1e-7
"""A cycle that lowers ``‖M−T‖²`` by less than this share is the last one."""
CYCLES_MAX = 60
"""A flat spectrum gains ever less; no cycle comes after these."""
_EPSILON = float(np.finfo(np.float64).eps)


def leading_triplets(matrix: NDArray[np.float64], slots: int, start: NDArray[np.float64]) -> tuple[LowRank, int]:
    """The best approximation of a rank, its error at most about ``TOLERANCE`` above the least possible.

    Deterministic: a pure function of the arguments, bit for bit on one machine with one BLAS thread.

    Args:
        matrix: ``[m, n]``, finite, both sides several times ``DEPTH·(k + OVERSAMPLING)``.
        slots: ``k``.
        start: ``[n, j]``, columns near the leading right singular vectors; ``j`` may be 0.

    Returns:
        At most ``k`` triplets, singular values that are rounding noise being left out, and how many bases of ``DEPTH``
        blocks it took.
    """
    V = orthonormal(_padded(start, matrix.shape[1], slots + OVERSAMPLING))
    images = matrix @ V
    energy, captured = float(np.vdot(matrix, matrix)), 0.0
    cycles = 0
    while cycles < CYCLES_MAX:
        cycles += 1
        V, images, S = _cycle(matrix, V, images)
        before, captured = captured, float(np.sum(S[:slots] ** 2))
        if captured - before <= max(TOLERANCE * (energy - captured), 4 * _EPSILON * energy):
            break
    Q = orthonormal(images[:, :slots])
    return ritz_triplets(Q, Q.T @ matrix, min(matrix.shape) * _EPSILON * math.sqrt(energy)), cycles


def ritz_triplets(Q: NDArray[np.float64], projected: NDArray[np.float64], noise: float) -> LowRank:
    """The singular value decomposition of ``Q·Qᵀ·M``, a projection of ``M``.

    Args:
        Q: ``[m, k]``, orthonormal columns.
        projected: ``Qᵀ·M``, ``[k, n]``.
        noise: Singular values up to this are left out.
    """
    U, S, Vt = np.linalg.svd(projected, full_matrices=False)
    rank = int(np.count_nonzero(noise < S))
    return canonical(Q @ U[:, :rank], S[:rank], Vt[:rank])


def orthonormal(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns that span at least these."""
    return np.linalg.qr(columns).Q


def _cycle(
    matrix: NDArray[np.float64], V: NDArray[np.float64], images: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """One basis from a block and its images: the next block, its images, and all Ritz values."""
    block = V.shape[1]
    basis, mapped = V, images
    for _ in range(DEPTH - 1):
        fresh = matrix.T @ mapped[:, -block:]
        fresh = orthonormal(fresh - basis @ (basis.T @ fresh))
        fresh = orthonormal(fresh - basis @ (basis.T @ fresh))  # twice is enough, also for what rounding left
        basis, mapped = np.hstack([basis, fresh]), np.hstack([mapped, matrix @ fresh])
    _, S, Yt = np.linalg.svd(np.linalg.qr(mapped).R)
    return basis @ Yt[:block].T, mapped @ Yt[:block].T, S


def _padded(start: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.float64]:
    """A block of this many columns: what is known, and random ones for what is not."""
    known = start[:, :columns]
    random = np.random.Generator(np.random.PCG64(rows)).standard_normal((rows, columns - known.shape[1]))
    return np.hstack([known, random])
