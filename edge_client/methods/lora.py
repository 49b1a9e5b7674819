"""LoRA through PEFT, at this device's own rank, α and scaling, from a scale-free hand-out and back.

The first ``rank`` slots of a hand-out become the trainable adapter ``default`` (``A`` as it is, ``B = B̂/s``), the
slots behind them the frozen adapter ``residual`` of scaling 1: no gradient, no optimizer state. Both are active, so a
layer computes ``W·x + s·B·A·x + R·x`` and the gradient is taken at the point that the aggregator holds.

Reference: Hu et al., "LoRA", 2021, arXiv:2106.09685, section 4.1; Kalajdzievski, "A Rank Stabilization Scaling Factor
for Fine-Tuning with LoRA", 2023, arXiv:2312.03732 (``s = α/√r``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from edge_client.errors import AggregatorError, BaseModelError, ConfigError
from edge_client.methods.dense import DenseOffsets
from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from edge_client.methods.scaling import LoraSettings
from edge_client.model.quiet import quiet_loading
from edge_client.model.task_model import TaskModel
from protocol.manifest import LowRankModule, Manifest, Pooling, Quantization
from protocol.payload import AdapterTensors, Factor, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

__all__ = ["Lora", "LoraTuner"]

_TRAINED, _RESIDUAL = "default", "residual"


@dataclass(frozen=True, kw_only=True)
class Lora(Method):
    """Low-rank updates of linear layers, at each device's own rank.

    Raises:
        ConfigError: The targets are no names, or there is none.
    """

    target_modules: tuple[str, ...] | None = None
    """Suffixes of the linear layers to tune, as PEFT takes them (``("query", "value")``); None: all linear layers of
    the body but a pooler that the task does not use."""

    name: ClassVar[str] = "lora"
    quantizations: ClassVar[frozenset[Quantization]] = frozenset(Quantization)

    def __post_init__(self) -> None:
        targets: object = self.target_modules
        if targets is None:
            return
        if not isinstance(targets, tuple) or not all(isinstance(each, str) for each in targets):
            raise ConfigError(f"target_modules: expected a tuple of names, got {targets!r}")
        if not targets:
            raise ConfigError("target_modules: expected at least one name, or none for all linear layers")

    def declare(self, subject: Subject) -> Trainables:
        """See :meth:`edge_client.methods.interface.Method.declare`."""
        linear = dict(_linear_layers(subject.backbone))
        if self.target_modules is None:
            unused = {"pooler"} if subject.task.pooling is not Pooling.MODEL else set()
            chosen = [name for name in linear if unused.isdisjoint(name.split("."))]
        else:
            for suffix in self.target_modules:
                if not any(_matches(name, suffix) for name in linear):
                    raise ConfigError(
                        f"target_modules: {suffix!r} matches no linear layer; there are {_last_parts(linear)}"
                    )
            chosen = [name for name in linear if any(_matches(name, suffix) for suffix in self.target_modules)]
        return Trainables(
            low_rank=tuple(
                LowRankModule(name=name, out_features=linear[name][0], in_features=linear[name][1]) for name in chosen
            )
        )

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """See :meth:`edge_client.methods.interface.Method.tuner`."""
        return LoraTuner(model, manifest, lora)


class LoraTuner:
    """Implements :class:`edge_client.methods.interface.Tuner`.

    Args:
        model: Base model with pooling and head, frozen.
        manifest: Names the modules to wrap, exactly, and the dense tensors.
        settings: This device's scaling.
    """

    def __init__(self, model: TaskModel, manifest: Manifest, settings: LoraSettings) -> None:
        self._layout = Layout.of(manifest)
        self._settings = settings
        self._dense = DenseOffsets(model, manifest.dense)
        self._model: Any = model.backbone
        self._ranks: tuple[int, int] | None = None
        self._loaded: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    @property
    def model(self) -> nn.Module:
        """The ``PeftModel``, or the plain base where nothing of low rank was loaded yet."""
        model: nn.Module = self._model
        return model

    def load(self, handout: AdapterTensors, rank: int, active: Layout) -> list[nn.Parameter]:
        """See :meth:`edge_client.methods.interface.Tuner.load`."""
        factors = self._load_factors(handout, rank, active)
        # PEFT freezes all that is not its own when it wraps a model, so the dense tensors come last.
        return self._dense.load(handout.dense, (tensor.name for tensor in active.dense)) + factors

    def change(self, active: Layout) -> AdapterTensors:
        """``(s·dB, dA)`` and dense differences; see :meth:`edge_client.methods.interface.Tuner.change`."""
        rank = self._ranks[0] if self._ranks is not None else 0
        found = active.zeros(rank)
        for module in active.low_rank:
            layer, (b, a) = self._layer(module.name), self._loaded[module.name]
            db, da = active.factors(found.slots, module.name)
            if Factor.B not in active.frozen:
                db[:] = (_weight(layer.lora_B) - b) * np.float32(self._settings.scaling(rank))
            if Factor.A not in active.frozen:
                da[:] = _weight(layer.lora_A) - a
        return AdapterTensors(self._dense.change(tensor.name for tensor in active.dense), found.slots)

    def _load_factors(self, handout: AdapterTensors, rank: int, active: Layout) -> list[nn.Parameter]:
        if not self._layout.low_rank:
            return []
        if not 1 <= rank <= handout.rank:
            raise AggregatorError(f"the hand-out has {handout.rank} slots, the assignment trains {rank}")
        self._shape(rank, handout.rank - rank)
        scaling, parameters = self._settings.scaling(rank), []
        trained, factors = {module.name for module in active.low_rank}, set(Factor) - set(active.frozen)
        for module in self._layout.low_rank:
            b, a = self._layout.factors(handout.slots, module.name)
            layer = self._layer(module.name)
            self._loaded[module.name] = b[:, :rank] / np.float32(scaling), np.array(a[:rank])
            parameters += _set(
                layer, _TRAINED, *self._loaded[module.name], factors if module.name in trained else frozenset()
            )
            if handout.rank > rank:
                _set(layer, _RESIDUAL, b[:, rank:], a[rank:], frozenset())
        return parameters

    def _shape(self, rank: int, residual: int) -> None:
        """Gives the model adapters of these ranks, anew only if they differ from those it has."""
        if self._ranks == (rank, residual):
            return
        base = self._model.unload() if isinstance(self._model, PeftModel) else self._model
        names = "|".join(re.escape(module.name) for module in self._layout.low_rank)
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            trained = LoraConfig(
                r=rank,
                lora_alpha=self._settings.alpha(rank),  # type: ignore[arg-type]  # PEFT takes any number
                use_rslora=self._settings.use_rslora,
                target_modules=f"(?:{names})",
            )
            self._model = get_peft_model(base, trained, adapter_name=_TRAINED)
            if residual:
                frozen = LoraConfig(r=residual, lora_alpha=residual, target_modules=f"(?:{names})")
                self._model.add_adapter(_RESIDUAL, frozen)
                self._model.base_model.set_adapter([_TRAINED, _RESIDUAL])
        for module in self._layout.low_rank:
            self._layer(module.name)
        self._ranks = (rank, residual)

    def _layer(self, name: str) -> Any:
        try:
            layer = self._model.base_model.model.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, LoraLayer):
            raise BaseModelError(f"the manifest tunes {name!r}, which PEFT found no linear layer for in this model")
        return layer


def _linear_layers(backbone: PreTrainedModel) -> Iterator[tuple[str, tuple[int, int]]]:
    """Linear layers of the body, with their output and input widths; heads lie outside it."""
    body = {id(module) for module in backbone.base_model.modules()}
    for name, module in backbone.named_modules():
        if id(module) not in body:
            continue
        if isinstance(module, nn.Linear):
            yield name, (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            yield name, (module.weight.shape[1], module.weight.shape[0])


def _matches(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _last_parts(names: dict[str, tuple[int, int]]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def _set(layer: Any, adapter: str, b: Any, a: Any, trained: AbstractSet[Factor]) -> list[nn.Parameter]:
    """Sets one adapter's factors on one layer; returns those to train, which alone require gradients."""
    factors = []
    for factor, held, values in ((Factor.B, layer.lora_B, b), (Factor.A, layer.lora_A, a)):
        weight = held[adapter].weight
        if tuple(weight.shape) != values.shape:
            raise BaseModelError(
                f"a factor has shape {values.shape} in the manifest, {tuple(weight.shape)} in the model"
            )
        with torch.no_grad():
            weight.copy_(torch.from_numpy(np.ascontiguousarray(values)))
        weight.grad = None
        weight.requires_grad_(factor in trained)
        if factor in trained:
            factors.append(weight)
    return factors


def _weight(factors: Any) -> NDArray[np.float32]:
    return np.asarray(factors[_TRAINED].weight.detach().float().cpu().numpy())
