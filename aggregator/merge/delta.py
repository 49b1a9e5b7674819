"""The nested delta merge: what the devices changed, summed exactly in product space.

A device that was handed the first ``r_i`` slots of ``B̂₀, A₀`` and returns ``dB̂_i, dA_i`` has changed the model by
``D_i = (B̂₀+dB̂_i)(A₀+dA_i) − B̂₀A₀ = dB̂_i·A₀ + B̂₀·dA_i + dB̂_i·dA_i``. All hand-outs of a version being prefixes of one,

    Σ p_i D_i = (Σ p_i·pad(dB̂_i))·A₀ + B̂₀·(Σ p_i·pad(dA_i)) + Σ (p_i·dB̂_i)·dA_i,

a product of width ``2·r_max + Σ r_i``. ``B̂₀, A₀`` are the *rounded* values that travelled: otherwise the codec's
rounding would count as learning. A module or slot that a device lacks contributes zero and is not renormalised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.algebra import Factors, stack
from aggregator.merge.errors import MergeError
from aggregator.merge.state import Increment
from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import Manifest

__all__ = ["ClientUpdate", "DeltaAccumulator", "check_update"]


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """What one device changed."""

    client: str
    """Its key; merging goes in the order of these."""
    num_examples: int
    """Its weight before normalisation."""
    rank: int
    """The rank it trained at."""
    tensors: AdapterTensors
    """``(s·dB, dA)`` and dense differences, in the layout of ``active``."""
    active: tuple[str, ...] | None = None
    """The trainables it was assigned; None: all."""


class DeltaAccumulator:
    """Sums updates one at a time, so that a cohort need never be in memory as a whole.

    It keeps one float64 copy of the update factors (the cross term's), besides two of the hand-out's size.

    Args:
        manifest: The run's universe.
        handout: The hand-out of the version that the updates are against, decoded from what was sent.
        total_weight: ``Σ num_examples`` over the cohort.

    Raises:
        MergeError: The total is not positive, or the hand-out is not of this manifest.
    """

    def __init__(self, manifest: Manifest, handout: AdapterTensors, total_weight: int) -> None:
        if total_weight <= 0:
            raise MergeError(f"the weights must sum to something positive, got {total_weight}")
        self._layout = Layout.of(manifest)
        self._manifest, self._handout, self._total = manifest, handout, total_weight
        _check_tensors("the hand-out", self._layout, handout)
        self._first_order = np.zeros(handout.slots.shape)
        self._dense = {tensor.name: np.zeros(tensor.shape) for tensor in manifest.dense}
        self._cross: dict[str, list[Factors]] = {module.name: [] for module in manifest.low_rank}

    def add(self, update: ClientUpdate) -> None:
        """Adds one update. Call in canonical order: float addition is not associative.

        Raises:
            MergeError: The update does not fit; nothing has been added.
        """
        layout = check_update(update, self._manifest, self._handout.rank)
        weight = update.num_examples / self._total
        for module in layout.low_rank:
            dB, dA = (part.astype(np.float64) for part in layout.factors(update.tensors.slots, module.name))
            sum_B, sum_A = _factors(self._layout, self._first_order, module.name)
            sum_B[:, : update.rank] += weight * dB
            sum_A[: update.rank] += weight * dA
            self._cross[module.name].append(Factors(weight * dB, dA).pruned())
        for tensor in layout.dense:
            self._dense[tensor.name] += weight * update.tensors.dense[tensor.name].astype(np.float64)

    def finish(self) -> Increment:
        """``Σ p_i D_i`` for every trainable."""
        return Increment(low_rank={name: self._delta(name) for name in self._cross}, dense=self._dense)

    def _delta(self, name: str) -> Factors:
        B, A = (part.astype(np.float64) for part in self._layout.factors(self._handout.slots, name))
        sum_B, sum_A = _factors(self._layout, self._first_order, name)
        return stack([Factors(sum_B, A).pruned(), Factors(B, sum_A).pruned(), *self._cross[name]])


def check_update(update: ClientUpdate, manifest: Manifest, slots: int) -> Layout:
    """Checks that an update can be merged.

    Args:
        update: What came.
        manifest: The run's universe.
        slots: Slots of the version's hand-out.

    Returns:
        The update's layout.

    Raises:
        MergeError: Weight, rank, names, shapes or values are not what they must be; names the client.
    """
    who = f"update of {update.client!r}"
    if not 1 <= update.num_examples <= limits.NUM_EXAMPLES_MAX:
        raise MergeError(f"{who}: num_examples must be in 1..2**40, got {update.num_examples}")
    try:
        layout = Layout.of(manifest, update.active)
    except RemoteProtocolError as error:
        raise MergeError(f"{who}: {error}") from error
    _check_tensors(who, layout, update.tensors)
    if layout.low_rank and not update.tensors.rank == update.rank <= slots:
        raise MergeError(
            f"{who}: trained at rank {update.rank}, sent {update.tensors.rank} slots, was handed {slots} at most"
        )
    return layout


def check_cohort(updates: Iterable[ClientUpdate]) -> Sequence[ClientUpdate]:
    """A cohort in canonical order.

    Raises:
        MergeError: It is empty, or a client is in it twice.
    """
    ordered = sorted(updates, key=lambda update: update.client)
    if not ordered:
        raise MergeError("a round without updates has nothing to merge; keep the version and try again")
    for one, other in pairwise(ordered):
        if one.client == other.client:
            raise MergeError(f"two updates of {one.client!r} in one cohort; the first that was stored counts")
    return ordered


def _factors(layout: Layout, slots: NDArray[np.float64], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Views into float64 slots; :meth:`Layout.factors` only slices."""
    return layout.factors(slots, name)  # type: ignore[arg-type, return-value]


def _check_tensors(who: str, layout: Layout, tensors: AdapterTensors) -> None:
    expected = {tensor.name: tensor.shape for tensor in layout.dense}
    got = {name: value.shape for name, value in tensors.dense.items()}
    if got != expected:
        wrong = min(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        raise MergeError(f"{who}: {wrong!r}: expected shape {expected.get(wrong)}, got {got.get(wrong)}")
    if layout.low_rank and (tensors.slots.ndim != 2 or tensors.slots.shape[1] != layout.width):
        raise MergeError(f"{who}: slots: expected {layout.width} values each, got shape {tensors.slots.shape}")
    for name, value in {**tensors.dense, "slots": tensors.slots}.items():
        if not np.isfinite(value).all():
            raise MergeError(f"{who}: {name!r} holds NaN or infinite values")
