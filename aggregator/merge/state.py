"""The state of a run: the exact offset from the base model, in float64, as a value.

A low-rank module is held as factors while they are smaller than the matrix, ``k(m+n) < m·n``, and as the matrix from
then on. Nothing is truncated to a rank; what compression dropped as rounding noise is summed up as a certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aggregator.merge.algebra import Factors, LowRank, compress, decompose, stack
from aggregator.merge.errors import MergeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import LowRankModule, Manifest

__all__ = ["GlobalState", "Increment", "ModuleState"]


@dataclass(frozen=True)
class ModuleState:
    """The exact offset of one linear map."""

    value: LowRank | NDArray[np.float64]
    """Factors, or the matrix ``[m, n]`` where that is smaller."""
    discarded: float = 0.0
    """Bound on the Frobenius norm of all that was ever dropped as numerically zero."""

    @classmethod
    def zeros(cls, module: LowRankModule) -> Self:
        """No offset."""
        return cls(LowRank.zeros(module.out_features, module.in_features))

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``."""
        rows, columns = self.value.shape
        return rows, columns

    @cached_property
    def svd(self) -> LowRank:
        """The decomposition that every hand-out, export and report of this version shares."""
        return self.value if isinstance(self.value, LowRank) else decompose(self.value).value

    def add(self, increment: Factors) -> ModuleState:
        """The exact sum."""
        increment = increment.pruned()
        if not increment.width:
            return self
        if not isinstance(self.value, LowRank):
            return ModuleState(self.value + increment.dense(), self.discarded)
        merged = compress(stack([self.value.factors(), increment]))
        rows, columns = self.shape
        if merged.value.rank * (rows + columns) < rows * columns:
            return ModuleState(merged.value, self.discarded + merged.discarded)
        return ModuleState(self.value.dense() + increment.dense(), self.discarded)


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

    def to_bytes(self) -> bytes:
        """Canonical safetensors: equal states, equal bytes, so a version's SHA-256 is its identity."""
        tensors = {f"{name}/dense": np.ascontiguousarray(value) for name, value in self.dense.items()}
        for name, module in self.low_rank.items():
            tensors[f"{name}/discarded"] = np.array([module.discarded])
            if isinstance(module.value, LowRank):
                tensors |= {f"{name}/U": module.value.U, f"{name}/S": module.value.S, f"{name}/Vt": module.value.Vt}
            else:
                tensors[f"{name}/W"] = module.value
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes, manifest: Manifest) -> Self:
        """Reads what :meth:`to_bytes` wrote.

        Args:
            data: The whole file.
            manifest: The run it belongs to.

        Raises:
            MergeError: Not a state, or not one of this manifest; names the tensor.
        """
        try:
            tensors = load(data)
        except (SafetensorError, KeyError) as error:
            raise MergeError(f"the stored state cannot be read: {error}") from error
        shelf = _Shelf(tensors)
        state = cls(
            low_rank={module.name: _read_module(shelf, module) for module in manifest.low_rank},
            dense={tensor.name: shelf.take(f"{tensor.name}/dense", tensor.shape) for tensor in manifest.dense},
        )
        shelf.finish()
        return state

    def _check(self, increment: Increment) -> None:
        for name, factors in increment.low_rank.items():
            expected = self.low_rank[name].shape if name in self.low_rank else None
            if factors.shape != expected:
                raise MergeError(f"{name!r}: the state has shape {expected}, the increment {factors.shape}")
        for name, value in increment.dense.items():
            expected_dense = self.dense[name].shape if name in self.dense else None
            if value.shape != expected_dense:
                raise MergeError(f"{name!r}: the state has shape {expected_dense}, the increment {value.shape}")


class _Shelf:
    """Stored tensors, taken one by one and checked."""

    def __init__(self, tensors: dict[str, NDArray[np.float64]]) -> None:
        self._tensors = tensors

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def take(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        value = self._tensors.pop(key, None)
        if value is None or value.dtype != np.float64 or value.shape != shape:
            got = "nothing" if value is None else f"{value.dtype} {value.shape}"
            raise MergeError(f"stored state: {key!r}: expected float64 {shape}, got {got}; is it of another run?")
        if not np.isfinite(value).all():
            raise MergeError(f"stored state: {key!r} holds NaN or infinite values")
        return value

    def rank(self, key: str) -> int:
        return len(self._tensors.get(key, ()))

    def finish(self) -> None:
        if self._tensors:
            raise MergeError(f"stored state: {min(self._tensors)!r} is not a trainable of this run")


def _read_module(shelf: _Shelf, module: LowRankModule) -> ModuleState:
    name, rows, columns = module.name, module.out_features, module.in_features
    discarded = float(shelf.take(f"{name}/discarded", (1,))[0])
    if f"{name}/W" in shelf:
        return ModuleState(shelf.take(f"{name}/W", (rows, columns)), discarded)
    rank = shelf.rank(f"{name}/S")
    U, S = shelf.take(f"{name}/U", (rows, rank)), shelf.take(f"{name}/S", (rank,))
    return ModuleState(LowRank(U, S, shelf.take(f"{name}/Vt", (rank, columns))), discarded)
