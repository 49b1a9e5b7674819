"""Dense trainables of a run: heads, biases, prompts and the like, held as origin plus offset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.errors import AggregatorError, BaseModelError
from edge_client.model.task_model import TaskModel
from protocol.manifest import DenseTensor, Manifest
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DenseOffsets", "DenseTuner"]


class DenseTuner:
    """Implements :class:`edge_client.methods.interface.Tuner` for methods without low-rank modules.

    Args:
        model: Base model with head, frozen, and with what the method installed in it.
        manifest: Names the tensors.

    Raises:
        BaseModelError: As :class:`DenseOffsets`.
    """

    def __init__(self, model: TaskModel, manifest: Manifest) -> None:
        self._model, self._dense = model, DenseOffsets(model, manifest.dense)

    @property
    def model(self) -> nn.Module:
        """The base model."""
        return self._model.backbone

    def load(self, handout: AdapterTensors, rank: int, active: Layout) -> list[nn.Parameter]:
        """See :meth:`edge_client.methods.interface.Tuner.load`."""
        del rank
        return self._dense.load(handout.dense, (tensor.name for tensor in active.dense))

    def change(self, active: Layout) -> AdapterTensors:
        """See :meth:`edge_client.methods.interface.Tuner.change`."""
        return AdapterTensors(self._dense.change(tensor.name for tensor in active.dense), active.zeros(0).slots)


class DenseOffsets:
    """The dense part of every method: parameters whose origin is the base model or an initializer.

    They are trained in fp32 whatever the base is held in; a module that owns one computes in fp32.

    Args:
        model: The model that owns the parameters, before adapters are injected.
        tensors: The manifest's dense trainables.

    Raises:
        BaseModelError: A parameter does not exist or has another shape.
    """

    def __init__(self, model: TaskModel, tensors: Sequence[DenseTensor]) -> None:
        self._parameters: dict[str, nn.Parameter] = {}
        self._origins: dict[str, NDArray[np.float32]] = {}
        self._loaded: dict[str, NDArray[np.float32]] = {}
        body = set(model.backbone.base_model.modules())
        for tensor in tensors:
            owner, parameter = model.owner(tensor.name)
            if tuple(parameter.shape) != tensor.shape:
                raise BaseModelError(
                    f"{tensor.name!r}: the manifest says {tensor.shape}, the model has {tuple(parameter.shape)}"
                )
            if parameter.dtype is not torch.float32:
                _compute_in_fp32(owner, restore=owner in body)
            self._parameters[tensor.name] = parameter
            self._origins[tensor.name] = (
                _as_numpy(parameter) if tensor.initializer is None else tensor.initializer.values(tensor.shape)
            )

    def load(self, offsets: Mapping[str, NDArray[np.float32]], active: Iterable[str]) -> list[nn.Parameter]:
        """Sets every parameter to origin plus offset; returns the active ones, which alone require gradients.

        Raises:
            AggregatorError: An offset is missing or misshapen.
        """
        trained = set(active)
        for name, parameter in self._parameters.items():
            offset = offsets.get(name)
            if offset is None or offset.shape != tuple(parameter.shape):
                raise AggregatorError(f"the hand-out has no tensor {name!r} of shape {tuple(parameter.shape)}")
            self._loaded[name] = self._origins[name] + offset
            parameter.grad = None
            parameter.requires_grad_(name in trained)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(self._loaded[name]))
        return [parameter for name, parameter in self._parameters.items() if name in trained]

    def change(self, active: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Differences of the active tensors to what was loaded."""
        return {name: _as_numpy(self._parameters[name]) - self._loaded[name] for name in active}


def _as_numpy(parameter: Tensor) -> NDArray[np.float32]:
    return np.array(parameter.detach().float().cpu().numpy())


def _compute_in_fp32(module: nn.Module, *, restore: bool) -> None:
    """Holds one module in fp32 inside a model of a lower precision.

    Args:
        module: Takes and gives one tensor.
        restore: Whether its output goes back to the input's dtype: a module of the body, unlike a head.
    """
    module.float()

    def forward(original: Any, values: Tensor) -> Tensor:
        output: Tensor = original(values.float())
        return output.to(values.dtype) if restore else output

    inner = module.forward
    module.forward = lambda values: forward(inner, values)
