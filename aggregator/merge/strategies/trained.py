"""What the clients of a cohort trained: their changes, the factors they ended with, and what they count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from aggregator.merge import Cohort, EncodedAdapter, MergeError, Scratch
from aggregator.merge.accumulator import LosslessSum
from aggregator.merge.delta import add_deltas
from aggregator.merge.encoded import factors_of_adapter
from aggregator.merge.strategies.interface import Requirement
from aggregator.merge.updates import check_handout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.merge import Factors
    from aggregator.merge.strategies.interface import RoundInput
    from protocol.manifest import LowRankModule, Manifest
    from protocol.payload import AdapterTensors, Layout

__all__ = ["Pair", "Trained", "TrainedCohort"]

Pair = tuple["NDArray[np.float64]", "NDArray[np.float64]"]


class Trained(NamedTuple):
    """One client's share in one module, in float64."""

    client: str
    """Its key."""
    weight: float
    """``p_i = n_i / Σ n_j``."""
    handed: Pair
    """``B̂₀ [m, r_i]`` and ``A₀ [r_i, n]``, as the client decoded them."""
    change: Pair
    """``dB̂`` and ``dA``; zero for a module that the client was not given to train."""

    @property
    def rank(self) -> int:
        """``r_i``."""
        return len(self.handed[1])

    @property
    def factors(self) -> Pair:
        """``B̂_i = B̂₀ + dB̂`` and ``A_i = A₀ + dA``: what the client ended with."""
        return self.handed[0] + self.change[0], self.handed[1] + self.change[1]


@dataclass(frozen=True, kw_only=True)
class TrainedCohort:
    """The updates of one round as rules that average models see them. Make it with :meth:`of`."""

    manifest: Manifest
    """The run's universe."""
    handout: AdapterTensors | EncodedAdapter
    """What the version handed out."""
    layout: Layout
    """Its layout."""
    checked: Cohort
    """The updates, as the exact merge takes them."""
    scratch: Scratch
    """Where large arrays lie."""
    requires: frozenset[Requirement]
    """What the rule asks of the clients."""

    @classmethod
    def of(cls, given: RoundInput, requires: frozenset[Requirement] = frozenset()) -> Self:
        """Checks a cohort: decoded updates whole, encoded ones by header and length.

        Raises:
            MergeError: It is empty, an update does not fit the hand-out or is against an earlier one, or does not
                keep to ``requires``.
        """
        layout = check_handout(given.handout, given.manifest)
        checked = Cohort.of(given.updates, given.manifest, given.handout.rank)
        _check_one_version(checked)
        if Requirement.EQUAL_RANKS in requires:
            _check_equal_ranks(given.manifest, checked)
        return cls(
            manifest=given.manifest,
            handout=given.handout,
            layout=layout,
            checked=checked,
            scratch=Scratch(given.scratch),
            requires=requires,
        )

    @property
    def slots(self) -> int:
        """Slots that the version handed out."""
        return self.handout.rank

    @property
    def width(self) -> int:
        """``Σ r_i`` over all clients."""
        return sum(member.update.rank for member in self.checked.members)

    def trained(self, module: LowRankModule) -> Iterator[Trained]:
        """What each client did to a module, in canonical order, read one by one.

        Raises:
            MergeError: A value is not finite, or the client did not keep to what the rule requires; names it.
        """
        B, A = (part.astype(np.float64) for part in self._handed(module))
        shares = self.checked.shares(module)
        for update, _, names in self.checked.members:
            handed = B[:, : update.rank], A[: update.rank]
            if module.name in names:
                _, dB, dA = next(shares)
                change = dB.astype(np.float64), dA.astype(np.float64)
            else:
                change = np.zeros_like(handed[0]), np.zeros_like(handed[1])
            if Requirement.FROZEN_A in self.requires and change[1].any():
                raise MergeError(
                    f"update of {update.client!r}: {module.name!r}: this strategy shares a frozen A, and the "
                    "client changed it; let it train B alone"
                )
            yield Trained(update.client, self.checked.weight(update), handed, change)

    def mean_change(self, module: LowRankModule, step: float) -> Factors | NDArray[np.float64]:
        """``η·Σ p_i D_i``: what an exact rule would add."""
        handed, shape = self._handed(module), (module.out_features, module.in_features)
        total = LosslessSum(shape, self.checked.width(module) + 2 * self.slots, self.scratch)
        add_deltas(total, handed, self.checked.shares(module), step)
        return total.finish()

    def moved_dense(self, before: Mapping[str, NDArray[np.float64]], step: float) -> dict[str, NDArray[np.float64]]:
        """``d + η·Σ p_i d_i`` of every dense tensor, in manifest order."""
        return {t.name: before[t.name] + step * self.checked.mean(t) for t in self.manifest.dense}

    def _handed(self, module: LowRankModule) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return factors_of_adapter(self.handout, self.layout, module.name)


def _check_one_version(cohort: Cohort) -> None:
    behind = next((each.update for each in cohort.members if each.update.staleness), None)
    if behind is not None:
        raise MergeError(
            f"update of {behind.client!r}: it is {behind.staleness} versions behind, and this strategy averages models "
            "of one version; use 'delta'"
        )


def _check_equal_ranks(manifest: Manifest, cohort: Cohort) -> None:
    if manifest.low_rank and len(cohort.ranks) > 1:
        raise MergeError(
            f"this strategy averages factors slot by slot and needs clients of one rank, got ranks {cohort.ranks}; "
            "use 'delta', or give every client the same rank"
        )
