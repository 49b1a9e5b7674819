"""What a merge strategy is: it owns the state of a run, makes hand-outs from it, and takes updates into it.

What travels is the same under each: a client gets a prefix of the hand-out's slots and returns ``(s·dB, dA)`` and dense
differences against the values it was handed. Rules that average models rather than changes rebuild these exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from aggregator.merge.errors import MergeError
from aggregator.merge.opened import merge_here
from aggregator.merge.tensor_file import TensorFile, view_tensors

if TYPE_CHECKING:
    from aggregator.merge import ClientUpdate, EncodedAdapter, GlobalState, MergeReport
    from aggregator.merge.opened import OpenMerge
    from aggregator.merge.tensor_file import Stored, Tensors
    from protocol.manifest import LowRankModule, Manifest
    from protocol.payload import AdapterTensors

__all__ = ["Property", "Requirement", "RoundInput", "Strategy"]

State = TypeVar("State")


class Property(StrEnum):
    """What a merge rule should keep to. One that does not says so in :attr:`Strategy.fails`; tests hold it to that."""

    NO_OP = "no-op"
    """Clients that change nothing leave the model as it is, over any number of rounds."""
    IDENTICAL = "identical"
    """Clients that all make one change, at whatever ranks, make that change."""
    EXACT = "exact"
    """The model changes by ``Σ p_i D_i``, the weighted mean of what the clients changed."""
    GAUGE = "gauge"
    """``B → BG, A → G⁻¹A`` on a client, the same model, gives the same merge."""
    SCALING = "scaling"
    """Another ``α`` at the same ``s·BA`` gives the same merge."""
    ORDER = "order"
    """The order of arrival changes nothing, to the bit."""
    SPLIT = "split"
    """A client split in two, with its examples shared out, counts as before."""
    PRECISION = "precision"
    """Changes of 1 % of the model survive a hand-out and an update in bf16 to 1 % of themselves."""


class Requirement(StrEnum):
    """What a rule asks of the clients; a cohort that does otherwise is refused, the residual apart."""

    EQUAL_RANKS = "equal ranks"
    """All train at one rank."""
    FROZEN_A = "frozen A"
    """All train ``B`` alone: ``dA`` is zero."""
    RESIDUAL = "residual"
    """All hold the model as a frozen residual behind what they train, or they would not see it. Asked for when a device
    comes: what it changed adds up without, too."""
    ONE_VERSION = "one version"
    """All train from the live version: the rule averages models, and takes no change to an earlier one by itself."""


@dataclass(frozen=True, kw_only=True)
class RoundInput:
    """What a merge is given beside the state.

    Raises:
        MergeError: The step is not positive and finite.
    """

    manifest: Manifest
    """The run's universe."""
    handout: AdapterTensors | EncodedAdapter
    """What the version handed out, decoded from what was sent or as it is stored."""
    updates: tuple[ClientUpdate, ...]
    """The cohort, in any order, weighted by ``num_examples``."""
    step: float = 1.0
    """Share of the rule's result to take: the server's learning rate, times :attr:`Weighted.step`."""
    scratch: Path | None = None
    """Folder for what is large; None: memory."""
    stale: Mapping[int, AdapterTensors | EncodedAdapter] = field(default_factory=dict)
    """What earlier versions handed out, by staleness, where updates are against one of those."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0):
            raise MergeError(f"the server's step must be positive and finite, got {self.step}")


class Strategy(Protocol[State]):
    """One merge rule. Stateless itself; ``State`` is a value that it returns and never changes."""

    @property
    def fails(self) -> frozenset[Property]:
        """Properties it does not have; the class says why."""

    @property
    def requires(self) -> frozenset[Requirement]:
        """What it asks of the clients."""

    def start(self, manifest: Manifest, offset: GlobalState, seed: int) -> State:
        """The state of version 0.

        Args:
            manifest: The run's universe.
            offset: Where to start from; zero for the base model itself.
            seed: The run's seed, for what is drawn once.

        Raises:
            MergeError: The rule cannot hold this offset.
        """

    def handout(self, state: State, manifest: Manifest, slots: int, seed: int) -> AdapterTensors:
        """What the clients of a version train from: float32, slot-major; rank ``r`` is the first ``r`` slots.

        Args:
            state: The version.
            manifest: The run's universe.
            slots: Slots per module, at least 1. Those behind a client's rank are the frozen residual, if it takes one.
            seed: The version's seed.

        Raises:
            MergeError: No slot is asked for, or a value does not fit float32.
        """

    def open(self, state: State, given: RoundInput) -> OpenMerge[State]:
        """Checks a round and makes it ready to be merged, module by module. Updates in files stay there.

        Args:
            state: The version that was handed out.
            given: What came back.

        Raises:
            MergeError: The cohort is empty, an update does not fit, or the rule refuses it. The state is as it was.
        """

    def only(self, state: State, manifest: Manifest, module: LowRankModule) -> State:
        """What :meth:`open` needs of a state to merge one module, as the state of a run of that module alone."""

    def offset(self, state: State, manifest: Manifest) -> GlobalState:
        """The model as an offset from the base: what is exported, and what a device keeps in the end."""

    def tensors(self, state: State) -> Tensors:
        """What is stored of a state, by name."""

    def of_tensors(self, tensors: Stored, manifest: Manifest) -> State:
        """The state of what :meth:`tensors` told; arrays are taken as they are.

        Raises:
            MergeError: Not a state of this rule and manifest.
        """

    def merge(
        self,
        state: State,
        manifest: Manifest,
        handout: AdapterTensors | EncodedAdapter,
        updates: Iterable[ClientUpdate],
        *,
        step: float = 1.0,
        scratch: Path | None = None,
        stale: Mapping[int, AdapterTensors | EncodedAdapter] | None = None,
    ) -> tuple[State, MergeReport]:
        """The next version, merged in this process; arguments as in :class:`RoundInput`, errors as of :meth:`open`."""
        given = RoundInput(
            manifest=manifest,
            handout=handout,
            updates=tuple(updates),
            step=step,
            scratch=scratch,
            stale=dict(stale or {}),
        )
        return merge_here(self.open(state, given))

    def to_bytes(self, state: State) -> bytes:
        """Canonical: equal states, equal bytes.

        Raises:
            MergeError: A value is not finite.
        """
        return TensorFile(self.tensors(state)).to_bytes()

    def from_bytes(self, data: bytes | memoryview, manifest: Manifest) -> State:
        """Reads what :meth:`to_bytes` wrote, in place.

        Raises:
            MergeError: Not a state of this rule and manifest.
        """
        return self.of_tensors(view_tensors(data), manifest)
