"""Dense trainables of a run: heads, biases, prompts and the like, held as origin plus offset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from edge_client.errors import AggregatorError, BaseModelError
from edge_client.model.base_model import is_linear, weight_owners
from edge_client.model.task_model import TaskModel
from protocol.manifest import DenseTensor, Manifest, TaskKind
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_client.methods.interface import Subject

__all__ = ["DenseOffsets", "DenseTuner", "base_tensors"]


def base_tensors(subject: Subject) -> Iterator[DenseTensor]:
    """Every parameter that the base model itself has, one that is tied once; a task's head is not the base's."""
    head = {tensor.name for tensor in subject.head}
    owner = subject.backbone if subject.task.kind is TaskKind.CAUSAL_LM else subject.backbone.base_model
    own = {id(parameter) for parameter in owner.parameters()}
    for name, parameter in subject.backbone.named_parameters():
        if id(parameter) in own and name not in head:
            yield DenseTensor(name=name, shape=tuple(parameter.shape))


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

    They are trained in fp32 whatever the base is held in, and what owns one is made to compute so: the bias of a
    linear layer, whose weight stays as it is, is added in fp32; any other module computes in fp32 as a whole.

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
        body, owners = set(model.backbone.base_model.modules()), weight_owners(tensor.name for tensor in tensors)
        for tensor in tensors:
            owner, parameter = model.owner(tensor.name)
            if tuple(parameter.shape) != tensor.shape:
                raise BaseModelError(
                    f"{tensor.name!r}: the manifest says {tensor.shape}, the model has {tuple(parameter.shape)}"
                )
            if is_linear(owner) and tensor.name.rpartition(".")[0] not in owners:
                parameter = _add_bias_in_fp32(owner)
            elif parameter.dtype is not torch.float32:
                _compute_in_fp32(owner, parameter.dtype, restore=owner in body)
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


def _compute_in_fp32(module: nn.Module, dtype: torch.dtype, *, restore: bool) -> None:
    """Holds one module in fp32 inside a model of a lower precision.

    Args:
        module: Takes and gives one tensor.
        dtype: The model's. The input's may be another: a ViT gives its first layer pixels in the dtype of its weights.
        restore: Whether its output goes back to ``dtype``: a module of the body, unlike a head.
    """
    module.float()
    # Bound by ``partial``, here and below, so that a copy of the model computes with parameters of its own.
    module.forward = partial(_forward_in_fp32, module.forward, dtype if restore else torch.float32)


def _forward_in_fp32(forward: Callable[[Tensor], Tensor], dtype: torch.dtype, values: Tensor) -> Tensor:
    return forward(values.float()).to(dtype)


def _add_bias_in_fp32(linear: Any) -> nn.Parameter:
    """Adds a linear layer's bias to its product, rather than let the layer do it.

    bitsandbytes would turn the parameter itself into the dtype that it multiplies in.

    Args:
        linear: A linear layer in any precision; one in fp32 stays as it is.

    Returns:
        The layer's bias from here on, fp32.
    """
    if linear.weight.dtype is torch.float32:
        return cast(nn.Parameter, linear.bias)
    bias = nn.Parameter(linear.bias.float(), requires_grad=False)
    none = nn.Parameter(torch.zeros_like(linear.bias), requires_grad=False)
    linear.forward, linear.bias = partial(_multiply_and_add, linear, linear.forward, none), bias
    return bias


def _multiply_and_add(linear: Any, multiply: Callable[[Tensor], Tensor], none: nn.Parameter, values: Tensor) -> Tensor:
    bias, linear.bias = linear.bias, none
    try:
        product = multiply(values)
    finally:
        linear.bias = bias
    output: Tensor = (product.float() + bias).to(product.dtype)
    return output
