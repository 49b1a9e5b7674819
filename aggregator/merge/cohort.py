"""A checked cohort: its updates in canonical order with their weights, read one module at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from aggregator.merge.encoded import EncodedAdapter
from aggregator.merge.errors import MergeError
from aggregator.merge.updates import ClientUpdate, check_cohort, check_update
from aggregator.merge.weights import staleness_weight
from protocol.errors import RemoteProtocolError
from protocol.payload import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import DenseTensor, LowRankModule, Manifest

__all__ = ["Cohort", "Share"]


class Share(NamedTuple):
    """What one device changed in one module."""

    weight: float
    """``p_i·s(τ_i)``."""
    dB: NDArray[np.float32]  # noqa: N815
    """``s·dB``, ``[m, r]``."""
    dA: NDArray[np.float32]  # noqa: N815
    """``[r, n]``."""


class Member(NamedTuple):
    """An update, and what is in it."""

    update: ClientUpdate
    """It has been checked."""
    layout: Layout
    """Of its tensors."""
    names: frozenset[str]
    """The trainables that it has."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The updates of one round. Make it with :meth:`of`."""

    members: tuple[Member, ...]
    """In canonical order."""
    total_weight: int
    """``Σ num_examples``."""

    @classmethod
    def of(cls, updates: Iterable[ClientUpdate], manifest: Manifest, slots: int) -> Self:
        """Checks a cohort: decoded updates whole, encoded ones by header and length.

        Args:
            updates: In any order.
            manifest: The run's universe.
            slots: Slots of the hand-out that they are against.

        Raises:
            MergeError: It is empty, or an update does not fit.
        """
        ordered = check_cohort(updates)
        members = (
            Member(update, check_update(update, manifest, slots), _names(update, manifest)) for update in ordered
        )
        return cls(members=tuple(members), total_weight=sum(update.num_examples for update in ordered))

    @property
    def stalenesses(self) -> list[int]:
        """How far behind the live version the hand-outs were that were trained from, ascending."""
        return sorted({member.update.staleness for member in self.members})

    @property
    def ranks(self) -> list[int]:
        """The ranks that were trained, ascending."""
        return sorted({member.update.rank for member in self.members})

    def width(self, module: LowRankModule) -> int:
        """``Σ r_i`` over the devices that trained a module."""
        return sum(update.rank for update, _, names in self.members if module.name in names)

    def retention(self, module: LowRankModule) -> dict[int, float]:
        """``P_r`` by rank, ascending: the weight of the devices that trained a module at that rank or a higher one."""
        trained = [(u.rank, u.num_examples) for u, _, names in self.members if module.name in names]
        return {rank: sum(n for r, n in trained if r >= rank) / self.total_weight for rank in self.ranks}

    def seen(self, module: LowRankModule) -> dict[int, float]:
        """The same by slots that a device saw, ascending: its own, and those that it held as a frozen residual."""
        saw = [(u.rank + u.residual, u.num_examples) for u, _, names in self.members if module.name in names]
        slots = sorted({count for count, _ in saw})
        return {count: sum(n for c, n in saw if c >= count) / self.total_weight for count in slots}

    def shares(self, module: LowRankModule, staleness: int = 0) -> Iterator[Share]:
        """What each device changed in a module; one that lacks it is passed over.

        Args:
            module: One of the manifest's.
            staleness: Of the devices to tell of: what they changed is against one and the same hand-out.

        Raises:
            MergeError: A value is not finite; names the client.
        """
        for update, layout, names in self.members:
            if module.name in names and update.staleness == staleness:
                yield Share(self.weight(update), *_factors(update, layout, module.name))

    def mean(self, tensor: DenseTensor) -> NDArray[np.float64]:
        """``Σ p_i·s(τ_i)·d_i`` of a dense tensor.

        Raises:
            MergeError: As :meth:`shares`.
        """
        total = np.zeros(tensor.shape)
        for update, change in self.changes(tensor):
            total += self.weight(update) * change
        return total

    def changes(self, tensor: DenseTensor) -> Iterator[tuple[ClientUpdate, NDArray[np.float64]]]:
        """``d_i`` of each device that trained a dense tensor.

        Raises:
            MergeError: As :meth:`shares`.
        """
        for update, _, names in self.members:
            if tensor.name in names:
                yield update, _dense(update, tensor.name)

    def weight(self, update: ClientUpdate) -> float:
        """``p_i·s(τ_i)`` of one of its updates, times what clipping leaves of it."""
        return update.num_examples / self.total_weight * staleness_weight(update.staleness) * update.clip


def _names(update: ClientUpdate, manifest: Manifest) -> frozenset[str]:
    return frozenset(manifest.names if update.active is None else update.active)


def _factors(update: ClientUpdate, layout: Layout, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if not isinstance(update.tensors, EncodedAdapter):
        return layout.factors(update.tensors.slots, name)
    try:
        return update.tensors.factors(name)
    except RemoteProtocolError as error:
        raise MergeError(f"update of {update.client!r}: {name!r}: {error}") from error


def _dense(update: ClientUpdate, name: str) -> NDArray[np.float64]:
    if not isinstance(update.tensors, EncodedAdapter):
        return update.tensors.dense[name].astype(np.float64)
    try:
        return update.tensors.tensor(name).astype(np.float64)
    except RemoteProtocolError as error:
        raise MergeError(f"update of {update.client!r}: {name!r}: {error}") from error
