"""Bounds what one device can move a merge by: its whole change, in product space, at one flat norm."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from aggregator.merge import Cohort, Factors
from aggregator.merge.encoded import factors_of_adapter
from aggregator.merge.updates import check_handout
from aggregator.merge.weights import Weighted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aggregator.merge import ClientUpdate, EncodedAdapter
    from protocol.manifest import LowRankModule, Manifest
    from protocol.payload import AdapterTensors, Layout

__all__ = ["Clipping", "update_norms"]


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """``(1/K)·Σ D_i·min(1, C/‖D_i‖)``: no device moves the model by more than ``C/K``.

    The weights are uniform and the divisor is fixed. Were they shares of the cohort's examples, a device would move the
    weights of all others besides, by an amount that no clipping of its own change bounds.
    """

    clip_norm: float
    """``C``."""
    cohort_size: int
    """``K``, whatever the number of updates."""

    def weigh(
        self, updates: Sequence[ClientUpdate], manifest: Manifest, handout: AdapterTensors | EncodedAdapter
    ) -> Weighted:
        """Weighs a cohort.

        Args:
            updates: The cohort, all trained from ``handout``.
            manifest: The run's universe.
            handout: What the version handed out.

        Raises:
            MergeError: An update does not fit.
        """
        norms = update_norms(updates, manifest, handout)
        clipped = tuple(
            replace(update, num_examples=1, clip=min(1.0, self.clip_norm / norm) if norm > 0 else 1.0)
            for update, norm in zip(updates, norms, strict=True)
        )
        return Weighted(clipped, len(clipped) / self.cohort_size)


def update_norms(
    updates: Sequence[ClientUpdate], manifest: Manifest, handout: AdapterTensors | EncodedAdapter
) -> list[float]:
    """``‖D_i‖``: Frobenius norm of what each device changed, over all products ``s·BA`` and dense tensors together.

    ``D = dB̂·A₀ + (B̂₀ + dB̂)·dA`` has rank ``2r`` at most, so no matrix is multiplied out. They are found with
    one BLAS thread, as all that is merged: with another number the last bits are others.

    Raises:
        MergeError: An update does not fit.
    """
    layout = check_handout(handout, manifest)
    alone = [Cohort.of([update], manifest, handout.rank) for update in updates]
    squares = [0.0] * len(alone)
    with threadpool_limits(1):
        for module in manifest.low_rank:
            for at, norm in enumerate(_module_norms(alone, module, handout, layout)):
                squares[at] += norm**2
    for tensor in manifest.dense:
        for at, cohort in enumerate(alone):
            squares[at] += sum(float(np.sum(change**2)) for _, change in cohort.changes(tensor))
    return [math.sqrt(square) for square in squares]


def _module_norms(
    alone: Sequence[Cohort], module: LowRankModule, handout: AdapterTensors | EncodedAdapter, layout: Layout
) -> Iterator[float]:
    B, A = factors_of_adapter(handout, layout, module.name)
    for cohort in alone:
        norms = []
        for share in cohort.shares(module):
            rank = share.dA.shape[0]
            dB = share.dB.astype(np.float64)
            left, right = np.hstack([dB, B[:, :rank] + dB]), np.vstack([A[:rank], share.dA]).astype(np.float64)
            norms.append(Factors(left, right).norm())
        yield sum(norms)
