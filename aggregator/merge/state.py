"""The state of a run: the exact offset from the base model, in float64, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from aggregator.merge.algebra import Factors
from aggregator.merge.errors import MergeError
from aggregator.merge.module_state import ModuleState
from aggregator.merge.stored_modules import Shelf, StoredModules, module_tensors, read_module
from aggregator.merge.tensor_file import Stored, TensorFile, Tensors, prefixed, view_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import Manifest

__all__ = ["GlobalState", "Increment"]


@dataclass(frozen=True, kw_only=True)
class Increment:
    """What one round adds to the state. Names that are absent do not change."""

    low_rank: Mapping[str, Factors]
    """By module."""
    dense: Mapping[str, NDArray[np.float64]]
    """By tensor."""

    def scaled(self, factor: float) -> Increment:
        """The server step with this learning rate."""
        return Increment(
            low_rank={name: factors.scaled(factor) for name, factors in self.low_rank.items()},
            dense={name: value * factor for name, value in self.dense.items()},
        )


@dataclass(frozen=True, kw_only=True)
class GlobalState:
    """The exact offset from the base model (dense tensors with an initializer: from the initializer).

    A value: :meth:`add` returns a new one and shares what did not change. Treat the arrays as read-only.
    """

    low_rank: Mapping[str, ModuleState]
    """By module, in manifest order."""
    dense: Mapping[str, NDArray[np.float64]]
    """By tensor, in manifest order."""

    @classmethod
    def zeros(cls, manifest: Manifest) -> Self:
        """Version 0: the base model itself."""
        return cls(
            low_rank={module.name: ModuleState.zeros(module) for module in manifest.low_rank},
            dense={tensor.name: np.zeros(tensor.shape) for tensor in manifest.dense},
        )

    def width(self, name: str) -> int:
        """Rank of what is held of a module, as :attr:`ModuleState.width`, without reading it."""
        return self.low_rank.width(name) if isinstance(self.low_rank, StoredModules) else self.low_rank[name].width

    def only(self, name: str) -> GlobalState:
        """One low-rank module of it."""
        return GlobalState(low_rank={name: self.low_rank[name]}, dense={})

    def add(self, increment: Increment) -> GlobalState:
        """The exact sum of state and increment.

        Raises:
            MergeError: The increment names or shapes something that the state does not have.
        """
        self._check(increment)
        low_rank, dense = dict(self.low_rank), dict(self.dense)
        for name, factors in increment.low_rank.items():
            low_rank[name] = low_rank[name].add(factors)
        for name, value in increment.dense.items():
            dense[name] = dense[name] + value
        return GlobalState(low_rank=low_rank, dense=dense)

    def tensors(self) -> Tensors:
        """What is stored, by name."""
        stored = {f"{name}/dense": value for name, value in self.dense.items()}
        for name, module in self.low_rank.items():
            stored |= prefixed(name, module_tensors(module))
        return stored

    @classmethod
    def of_tensors(cls, tensors: Stored, manifest: Manifest) -> Self:
        """What :meth:`tensors` told, without a copy.

        Raises:
            MergeError: They are no state, or not one of this manifest; names the tensor.
        """
        shelf = Shelf(tensors)
        state = cls(
            low_rank=StoredModules({module.name: read_module(shelf, module) for module in manifest.low_rank}),
            dense={tensor.name: shelf.take(f"{tensor.name}/dense", tensor.shape) for tensor in manifest.dense},
        )
        shelf.finish()
        return state

    def to_bytes(self) -> bytes:
        """Canonical safetensors: equal states, equal bytes, so a version's SHA-256 is its identity.

        Raises:
            MergeError: A value is not finite.
        """
        return TensorFile(self.tensors()).to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, manifest: Manifest) -> Self:
        """Reads what :meth:`to_bytes` wrote, in place: the arrays are views of it.

        Args:
            data: The whole file, in memory or mapped.
            manifest: The run it belongs to.

        Raises:
            MergeError: Not a state, or not one of this manifest; names the tensor.
        """
        return cls.of_tensors(view_tensors(data), manifest)

    def _check(self, increment: Increment) -> None:
        for name, factors in increment.low_rank.items():
            expected = self.low_rank[name].shape if name in self.low_rank else None
            if factors.shape != expected:
                raise MergeError(f"{name!r}: the state has shape {expected}, the increment {factors.shape}")
        for name, value in increment.dense.items():
            expected_dense = self.dense[name].shape if name in self.dense else None
            if value.shape != expected_dense:
                raise MergeError(f"{name!r}: the state has shape {expected_dense}, the increment {value.shape}")
