"""What the clients of a cohort hold: their weights, their changes, and the factors they trained."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from aggregator.merge import ClientUpdate, Cohort, Factors, MergeError, stack
from aggregator.merge.strategies.interface import Requirement
from aggregator.merge.updates import check_handout
from protocol.errors import RemoteProtocolError
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import Manifest

__all__ = ["Pair", "TrainedCohort", "check_step"]

Pair = tuple["NDArray[np.float64]", "NDArray[np.float64]"]


@dataclass(frozen=True)
class TrainedCohort:
    """The updates of one round, decoded: rules that average models need all of them at once."""

    manifest: Manifest
    """The run's universe."""
    handout: AdapterTensors
    """What the version handed out."""
    checked: Cohort
    """The same updates as the exact merge takes them: ranks, weights, retention."""
    updates: tuple[ClientUpdate, ...]
    """By client key."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        handout: AdapterTensors,
        updates: Iterable[ClientUpdate],
        requires: frozenset[Requirement] = frozenset(),
    ) -> Self:
        """Checks a cohort.

        Raises:
            MergeError: It is empty, an update does not fit the hand-out, or does not keep to ``requires``.
        """
        check_handout(handout, manifest)
        checked = Cohort.of(updates, manifest, handout.rank)
        trained = cls(manifest, handout, checked, tuple(_decoded(member.update) for member in checked.members))
        if Requirement.EQUAL_RANKS in requires:
            trained._check_equal_ranks()
        if Requirement.FROZEN_A in requires:
            trained._check_frozen()
        return trained

    @property
    def ranks(self) -> list[int]:
        """The distinct ranks, ascending."""
        return self.checked.ranks

    def share(self, update: ClientUpdate) -> float:
        """``p_i = n_i / Σ n_j``."""
        return update.num_examples / self.checked.total_weight

    def handed(self, update: ClientUpdate, name: str) -> Pair:
        """``B̂₀ [m, r_i]`` and ``A₀ [r_i, n]``, as the client decoded them."""
        return _float64(Layout.of(self.manifest).factors(self.handout.slots[: update.rank], name))

    def change(self, update: ClientUpdate, name: str) -> Pair:
        """``dB̂`` and ``dA``; zero for a module that the client was not given to train."""
        if update.active is not None and name not in update.active:
            B, A = self.handed(update, name)
            return np.zeros_like(B), np.zeros_like(A)
        return _float64(Layout.of(self.manifest, update.active).factors(update.tensors.slots, name))

    def trained(self, update: ClientUpdate, name: str) -> Pair:
        """``B̂_i = B̂₀ + dB̂`` and ``A_i = A₀ + dA``: what the client ended with."""
        (B, A), (dB, dA) = self.handed(update, name), self.change(update, name)
        return B + dB, A + dA

    def mean_change(self, name: str) -> Factors:
        """``Σ p_i D_i`` of a module, ``D_i = [dB̂_i, B̂₀][A₀ + dA_i; dA_i]``: what an exact rule would add."""
        parts = []
        for update in self.updates:
            (B, A), (dB, dA) = self.handed(update, name), self.change(update, name)
            parts.append(stack([Factors(dB, A + dA), Factors(B, dA)]).scaled(self.share(update)))
        return stack(parts)

    def dense_change(self, name: str) -> NDArray[np.float64]:
        """``Σ p_i d_i`` of a dense tensor."""
        total = np.zeros(self.handout.dense[name].shape)
        for update in self.updates:
            if name in update.tensors.dense:
                total += self.share(update) * update.tensors.dense[name].astype(np.float64)
        return total

    def _check_equal_ranks(self) -> None:
        if self.manifest.low_rank and len(self.ranks) > 1:
            raise MergeError(
                f"this strategy averages factors slot by slot and needs clients of one rank, got ranks {self.ranks}; "
                "use 'delta', or give every client the same rank"
            )

    def _check_frozen(self) -> None:
        for update in self.updates:
            for module in Layout.of(self.manifest, update.active).low_rank:
                if self.change(update, module.name)[1].any():
                    raise MergeError(
                        f"update of {update.client!r}: {module.name!r}: this strategy shares a frozen A, and the "
                        "client changed it; let it train B alone"
                    )


def check_step(step: float) -> None:
    """Checks a server's step.

    Raises:
        MergeError: It is not positive and finite.
    """
    if not (math.isfinite(step) and step > 0):
        raise MergeError(f"the server's step must be positive and finite, got {step}")


def _decoded(update: ClientUpdate) -> ClientUpdate:
    if isinstance(update.tensors, AdapterTensors):
        return update
    try:
        return replace(update, tensors=AdapterTensors(dict(update.tensors.dense), update.tensors.slots))
    except RemoteProtocolError as error:
        raise MergeError(f"update of {update.client!r}: {error}") from error


def _float64(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> Pair:
    return pair[0].astype(np.float64), pair[1].astype(np.float64)
