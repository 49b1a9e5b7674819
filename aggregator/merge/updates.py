"""One device's update as it reaches the merge, and the checks that it, a hand-out and a cohort have to pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.encoded import EncodedAdapter
from aggregator.merge.errors import MergeError
from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.payload import AdapterTensors, Factor, Layout

if TYPE_CHECKING:
    from protocol.manifest import Manifest

__all__ = ["ClientUpdate", "check_cohort", "check_handout", "check_update"]


@dataclass(frozen=True, kw_only=True)
class ClientUpdate:
    """What one device changed."""

    client: str
    """Its key; merging goes in the order of these."""
    num_examples: int
    """Its weight before normalisation."""
    rank: int
    """The rank it trained at."""
    tensors: AdapterTensors | EncodedAdapter
    """``(s·dB, dA)`` and dense differences, in the layout of ``active``: decoded, or still in a file."""
    active: tuple[str, ...] | None = None
    """The trainables it was assigned; None: all."""
    frozen: tuple[Factor, ...] = ()
    """Factors that it kept as handed out and did not send."""
    residual: int = 0
    """Slots behind its rank that it held frozen: it saw them, and did not train them."""
    staleness: int = 0
    """``τ``: versions that followed the one that it was handed, before this merge."""
    step_length: float = 1.0
    """``K·η``: its optimizer steps times their learning rate, what its change is divided by to be a mean gradient."""
    clip: float = 1.0
    """Share of its change that counts, in (0, 1], and is not made up for: what clipping leaves of it."""


def check_update(update: ClientUpdate, manifest: Manifest, slots: int) -> Layout:
    """Checks that an update can be merged.

    Args:
        update: What came.
        manifest: The run's universe.
        slots: Slots of the version's hand-out.

    Returns:
        The update's layout: its own one where it has one, which many may share.

    Raises:
        MergeError: Weight, rank, names, shapes or values are not what they must be; names the client.
    """
    who = f"update of {update.client!r}"
    if not 1 <= update.num_examples <= limits.NUM_EXAMPLES_MAX:
        raise MergeError(f"{who}: num_examples must be in 1..2**40, got {update.num_examples}")
    if update.staleness < 0:
        raise MergeError(f"{who}: trained on a version that is not there yet: its staleness is {update.staleness}")
    try:
        layout = Layout.of(manifest, update.active, update.frozen)
    except RemoteProtocolError as error:
        raise MergeError(f"{who}: {error}") from error
    _check_tensors(who, layout, update.tensors)
    if layout.low_rank and not update.tensors.rank == update.rank <= slots:
        raise MergeError(
            f"{who}: trained at rank {update.rank}, sent {update.tensors.rank} slots, was handed {slots} at most"
        )
    if layout.low_rank and not 0 <= update.residual <= slots - update.rank:
        raise MergeError(
            f"{who}: held {update.residual} slots frozen behind its {update.rank}, was handed {slots} at most"
        )
    return update.tensors.layout if isinstance(update.tensors, EncodedAdapter) else layout


def check_handout(handout: AdapterTensors | EncodedAdapter, manifest: Manifest) -> Layout:
    """Checks that a hand-out is of a run.

    Returns:
        Its layout.

    Raises:
        MergeError: It is of another one.
    """
    layout = Layout.of(manifest)
    _check_tensors("the hand-out", layout, handout)
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


def _check_tensors(who: str, layout: Layout, tensors: AdapterTensors | EncodedAdapter) -> None:
    if isinstance(tensors, EncodedAdapter):
        _check_encoded(who, layout, tensors)
    else:
        _check_decoded(who, layout, tensors)


def _check_decoded(who: str, layout: Layout, tensors: AdapterTensors) -> None:
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


def _check_encoded(who: str, layout: Layout, tensors: EncodedAdapter) -> None:
    if tensors.layout != layout:
        raise MergeError(f"{who}: its layout is not the one of its active trainables")
    try:
        tensors.check()
    except RemoteProtocolError as error:
        raise MergeError(f"{who}: {error}") from error
