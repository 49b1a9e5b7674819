"""PEFT adapters of any ranks, federated without a manifest: hand-outs from an exact state, and deltas back into it.

A client that was handed ``B̂₀, A₀`` and returns ``B̂, A`` has changed the model by
``D = B̂A − B̂₀A₀ = (B̂ − B̂₀)·A + B̂₀·(A − A₀)``, and the next state is ``M' = M + Σ p_i D_i``, exactly. ``B̂₀, A₀`` are the
float32 values that were sent: otherwise rounding, and all of ``M`` that the client's rank could not hold, would count
as something it unlearnt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from aggregator.adapters.peft_adapter import (
    PeftAdapter,
    PeftModule,
    adapter_of_tensors,
    factor_tensors,
    plain_tensors,
)
from aggregator.merge import Factors, MergeError, ModuleState, compress, slot_factors, stack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aggregator.adapters.peft_config import PeftConfig

__all__ = ["AdapterState", "AdapterUpdate", "check_update"]


@dataclass(frozen=True, kw_only=True)
class AdapterUpdate:
    """What one client was handed, and what it made of it."""

    weight: float
    """Its weight before normalisation, positive."""
    handed: PeftAdapter
    """Read from the very tensors that were sent."""
    returned: PeftAdapter
    """Modules and dense tensors that it lacks count as unchanged."""


@dataclass(frozen=True, kw_only=True)
class AdapterState:
    """The exact offset of every tuned module, and the values of ``modules_to_save``. A value: :meth:`add` copies."""

    modules: Mapping[str, ModuleState]
    """By module path inside the base model."""
    embeddings: frozenset[str]
    """Which of the modules are embedding tables."""
    dense: Mapping[str, NDArray[np.float64]]
    """By parameter path inside the base model."""

    @classmethod
    def of(cls, adapter: PeftAdapter) -> Self:
        """The state that an adapter stands for.

        Raises:
            MergeError: The adapter tunes no module.
        """
        if not adapter.modules:
            raise MergeError(f"{adapter.source}: expected an adapter with LoRA modules to start from, got none")
        return cls(
            modules={name: ModuleState(compress(m.factors()).value) for name, m in adapter.modules.items()},
            embeddings=frozenset(name for name, module in adapter.modules.items() if module.embedding),
            dense={name: value.astype(np.float64) for name, value in adapter.dense.items()},
        )

    def prepared(self, rank: int) -> Self:
        """The same state, with what hand-outs of up to this rank are made of worked out once."""
        modules = {name: replace(state, top=state.handed_out(rank)) for name, state in self.modules.items()}
        return replace(self, modules=modules)

    def tensors(self, config: PeftConfig, seed: int) -> dict[str, NDArray[np.float32]]:
        """The best adapter of somebody's ranks and scaling, by PEFT's names.

        Slots beyond a module's own rank get fresh rows of ``A`` and ``B = 0``, the same rows for every rank.

        Args:
            config: Whose ``r``, ``α`` and patterns.
            seed: Seed of the fresh rows.

        Raises:
            PeftError: Patterns of the configuration contradict each other.
            MergeError: A value has grown beyond float32.
        """
        tensors = plain_tensors(self.dense)
        for name, state in self.modules.items():
            rank = config.rank(name)
            B, A = slot_factors(state.handed_out(rank), rank, name, seed)
            tensors |= factor_tensors(name, PeftModule(B, A, name in self.embeddings), config.scaling(name, rank))
        return tensors

    def handout(self, config: PeftConfig, seed: int) -> tuple[dict[str, NDArray[np.float32]], PeftAdapter]:
        """What a client is sent, and how the next :meth:`add` must read it.

        Args:
            config: The client's.
            seed: As in :meth:`tensors`.

        Raises:
            PeftError: As :meth:`tensors`.
            MergeError: As :meth:`tensors`.
        """
        tensors = self.tensors(config, seed)
        return tensors, adapter_of_tensors(config, tensors)

    def add(self, updates: Sequence[AdapterUpdate]) -> Self:
        """The next state.

        Args:
            updates: At least one, in an order of the caller's that does not depend on who was fastest: floating-point
                addition is not associative.

        Raises:
            MergeError: There is no update, or one does not fit (:func:`check_update`); the state is as it was.
        """
        if not updates:
            raise MergeError("a round without updates has nothing to merge; keep the state and try again")
        for update in updates:
            check_update(update)
        total = math.fsum(update.weight for update in updates)
        shares = [(update.weight / total, update) for update in updates]
        modules, dense = dict(self.modules), dict(self.dense)
        for name, state in self.modules.items():
            parts = [_delta(u, name).scaled(share) for share, u in shares if name in u.returned.modules]
            modules[name] = state.add(stack(parts)) if parts else state
        for name in self.dense:
            for share, update in shares:
                if name in update.returned.dense:
                    change = update.returned.dense[name].astype(np.float64) - update.handed.dense[name]
                    dense[name] = dense[name] + share * change
        return type(self)(modules=modules, embeddings=self.embeddings, dense=dense)


def check_update(update: AdapterUpdate) -> None:
    """Checks that an update is of what was handed out.

    Raises:
        MergeError: The weight is not positive, or a module or tensor was not handed out like that; names it.
    """
    who, handed = update.returned.source, update.handed
    if not (math.isfinite(update.weight) and update.weight > 0):
        raise MergeError(f"{who}: expected a positive weight, got {update.weight}")
    for name, module in update.returned.modules.items():
        expected = handed.modules.get(name)
        if expected is None or (module.kind, module.rank) != (expected.kind, expected.rank):
            raise MergeError(f"{who}: module {name!r} was not handed out, or not in this shape and rank")
    for name, value in update.returned.dense.items():
        if name not in handed.dense or value.shape != handed.dense[name].shape:
            raise MergeError(f"{who}: tensor {name!r} was not handed out, or not in this shape")


def _delta(update: AdapterUpdate, name: str) -> Factors:
    """``D`` of one module."""
    before, after = update.handed.modules[name].factors(), update.returned.modules[name].factors()
    return stack([Factors(after.left - before.left, after.right), Factors(before.left, after.right - before.right)])
