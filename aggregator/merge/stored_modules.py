"""Modules in files: what is stored of one, and states whose modules stay there until they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge.algebra import Factors, LowRank
from aggregator.merge.errors import MergeError
from aggregator.merge.module_state import ModuleState
from aggregator.merge.tensor_file import Rows, Stored, Tensors, prefixed, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import LowRankModule

__all__ = ["Shelf", "StoredModules", "is_stack", "module_tensors", "read_module"]

_STACK = ("Lt", "N")


class Shelf:
    """Stored tensors, taken one by one and checked by shape.

    Their values are not looked at: only finite ones are ever stored, and whoever opens a store compares digests.
    """

    def __init__(self, tensors: Stored) -> None:
        self._tensors = dict(tensors)

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def take(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The tensor, which is then no longer here.

        Raises:
            MergeError: There is none, or it has another shape.
        """
        return whole(self.take_rows(key, shape))

    def take_rows(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float64] | Rows:
        """The same as it lies, which may be in several files."""
        value = self._tensors.pop(key, None)
        if value is None or value.shape != shape:
            got = "nothing" if value is None else f"shape {value.shape}"
            raise MergeError(f"stored state: {key!r}: expected shape {shape}, got {got}; is it of another run?")
        return value

    def length(self, key: str) -> int:
        """Rows of a tensor, 0 if there is none."""
        return self._tensors[key].shape[0] if key in self._tensors else 0

    def finish(self) -> None:
        """Checks that all were taken.

        Raises:
            MergeError: One was not.
        """
        if self._tensors:
            raise MergeError(f"stored state: {min(self._tensors)!r} is not a trainable of this run")


class StoredModules(Mapping[str, ModuleState]):
    """Modules in files.

    A stack whose rows lie in several is copied together each time that it is asked for: of all that a state has, one at
    a time is in memory.

    Args:
        found: What :func:`read_module` found, by name.
    """

    def __init__(self, found: Mapping[str, ModuleState | StoredStack]) -> None:
        self._found = found

    def __getitem__(self, name: str) -> ModuleState:
        found = self._found[name]
        return found if isinstance(found, ModuleState) else found.read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def width(self, name: str) -> int:
        """As :attr:`ModuleState.width`."""
        return self._found[name].width


@dataclass(frozen=True, kw_only=True)
class StoredStack:
    """A stack of factors whose rows lie in the files of several versions."""

    left: NDArray[np.float64] | Rows
    """``[w, m]``."""
    right: NDArray[np.float64] | Rows
    """``[w, n]``."""
    discarded: float
    """As in :class:`ModuleState`."""
    top: LowRank | None
    """As in :class:`ModuleState`."""

    @property
    def width(self) -> int:
        """As :attr:`ModuleState.width`."""
        return min(self.left.shape[0], self.left.shape[1], self.right.shape[1])

    def read(self) -> ModuleState:
        """The module, with the bits that it had before it was stored."""
        return ModuleState(Factors(whole(self.left).T, whole(self.right)), self.discarded, self.top)


def read_module(shelf: Shelf, module: LowRankModule) -> ModuleState | StoredStack:
    """One module out of stored tensors.

    Raises:
        MergeError: They are not of this module.
    """
    name, rows, columns = module.name, module.out_features, module.in_features
    discarded = float(shelf.take(f"{name}/discarded", (1,))[0])
    top = _read_triplets(shelf, f"{name}/top/", (rows, columns)) if f"{name}/top/S" in shelf else None
    if f"{name}/W" in shelf:
        return ModuleState(shelf.take(f"{name}/W", (rows, columns)), discarded, top)
    if f"{name}/N" in shelf:
        width = shelf.length(f"{name}/N")
        left, right = shelf.take_rows(f"{name}/Lt", (width, rows)), shelf.take_rows(f"{name}/N", (width, columns))
        stack = StoredStack(left=left, right=right, discarded=discarded, top=top)
        return stack if isinstance(left, Rows) else stack.read()
    return ModuleState(_read_triplets(shelf, f"{name}/", (rows, columns)), discarded)


def _read_triplets(shelf: Shelf, prefix: str, shape: tuple[int, int]) -> LowRank:
    rank = shelf.length(f"{prefix}S")
    U, S = shelf.take(f"{prefix}U", (shape[0], rank)), shelf.take(f"{prefix}S", (rank,))
    return LowRank(U, S, shelf.take(f"{prefix}Vt", (rank, shape[1])))


def module_tensors(module: ModuleState) -> Tensors:
    """What is stored of a module, by key."""
    stored = {"discarded": np.array([module.discarded]), **_value_tensors(module.value)}
    return stored if module.top is None else {**stored, **prefixed("top", _value_tensors(module.top))}


def is_stack(name: str) -> bool:
    """Whether a stored tensor, by its name, is a factor of a stack, a row a term: what later versions add rows to."""
    return name.rpartition("/")[2] in _STACK


def _value_tensors(value: LowRank | Factors | NDArray[np.float64]) -> Tensors:
    if isinstance(value, LowRank):
        return {"U": value.U, "S": value.S, "Vt": value.Vt}
    return dict(zip(_STACK, (value.left.T, value.right), strict=True)) if isinstance(value, Factors) else {"W": value}
