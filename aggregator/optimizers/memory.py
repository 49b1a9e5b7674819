"""What a server optimizer carries from version to version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aggregator.merge import GlobalState, MergeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protocol.manifest import Manifest

__all__ = ["Memory"]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A value, stored with the version. Optimizers use what they need of it and leave the rest at zero."""

    steps: int
    """Updates so far."""
    momentum: GlobalState
    """First moment, in product space for low-rank modules; rank 0 costs nothing."""
    second: Mapping[str, NDArray[np.float64]]
    """Second moment by dense tensor; empty if unused."""

    @classmethod
    def zeros(cls, manifest: Manifest) -> Self:
        """Nothing to remember yet."""
        return cls(steps=0, momentum=GlobalState.zeros(manifest), second={})

    def to_bytes(self) -> bytes:
        """Canonical safetensors."""
        tensors = {f"second/{name}": np.ascontiguousarray(value) for name, value in self.second.items()}
        tensors["steps"] = np.array([self.steps], np.int64)
        tensors["momentum"] = np.frombuffer(self.momentum.to_bytes(), np.uint8)
        return save(tensors)

    @classmethod
    def from_bytes(cls, data: bytes, manifest: Manifest) -> Self:
        """Reads what :meth:`to_bytes` wrote.

        Raises:
            MergeError: Not a memory, or not one of this manifest.
        """
        try:
            tensors = load(data)
            steps, momentum = tensors.pop("steps"), tensors.pop("momentum")
        except (SafetensorError, KeyError) as error:
            raise MergeError(f"the optimizer's stored memory cannot be read: {error}") from error
        second = {name.removeprefix("second/"): value for name, value in tensors.items()}
        shapes = {tensor.name: tensor.shape for tensor in manifest.dense}
        wrong = [name for name, value in second.items() if shapes.get(name) != value.shape]
        if wrong or steps.shape != (1,) or steps[0] < 0 or not all(map(_sound, second.values())):
            raise MergeError("the optimizer's stored memory is not of this run's manifest")
        return cls(steps=int(steps[0]), momentum=GlobalState.from_bytes(momentum.tobytes(), manifest), second=second)


def _sound(value: NDArray[np.float64]) -> bool:
    return value.dtype == np.float64 and bool(np.isfinite(value).all())
