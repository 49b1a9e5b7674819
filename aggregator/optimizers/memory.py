"""What a server optimizer carries from version to version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from aggregator.merge import GlobalState, MergeError
from aggregator.merge.tensor_file import Stored, Tensors, prefixed, under, whole

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
    counts: Mapping[str, int] = field(default_factory=dict)
    """Updates of each dense tensor so far; empty if unused."""

    @classmethod
    def zeros(cls, manifest: Manifest) -> Self:
        """Nothing to remember yet."""
        return cls(steps=0, momentum=GlobalState.zeros(manifest), second={})

    def tensors(self) -> Tensors:
        """What is stored, by name."""
        momentum, second = prefixed("momentum", self.momentum.tensors()), prefixed("second", self.second)
        counts = prefixed("count", {name: np.array([float(count)]) for name, count in self.counts.items()})
        return {"steps": np.array([float(self.steps)]), **momentum, **second, **counts}

    @classmethod
    def of_tensors(cls, tensors: Stored, manifest: Manifest) -> Self:
        """What :meth:`tensors` told.

        Raises:
            MergeError: They are no memory, or not one of this manifest.
        """
        steps = whole(tensors["steps"]) if "steps" in tensors else None
        second = {name: whole(value) for name, value in under("second", tensors).items()}
        shapes = {tensor.name: tensor.shape for tensor in manifest.dense}
        counts = {name: whole(value) for name, value in under("count", tensors).items()}
        wrong = [name for name, value in second.items() if shapes.get(name) != value.shape]
        wrong += [name for name, value in counts.items() if name not in shapes or value.shape != (1,)]
        if wrong or steps is None or steps.shape != (1,) or not steps[0] >= 0:
            raise MergeError("the optimizer's stored memory is not of this run's manifest")
        momentum = GlobalState.of_tensors(under("momentum", tensors), manifest)
        updates = {name: int(value[0]) for name, value in counts.items()}
        return cls(steps=int(steps[0]), momentum=momentum, second=second, counts=updates)
