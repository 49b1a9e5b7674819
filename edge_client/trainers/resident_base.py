"""The base model that trainers tune: one trainer's own, or held once for all simulated devices of a process."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from edge_client.data.preprocessing import ImagePreprocessor, Preprocessor, TextPreprocessor
from edge_client.errors import BaseModelError, ConfigError
from edge_client.methods import Tuner, method_of
from edge_client.methods.scaling import LoraSettings
from edge_client.model.base_model import (
    load_backbone,
    load_image_processor,
    load_tokenizer,
    resolve_compute_dtype,
    switch_off_dropout,
)
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.task_model import TaskModel, takes_types
from edge_client.training.objectives import Context, Objective, objective_of
from protocol.manifest import Manifest, Quantization, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BaseSettings", "OwnBase", "ResidentBase", "SharedBase", "TunedModel"]


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """Which base model, and how it is held.

    Raises:
        ConfigError: The compute dtype has no such name.
    """

    model: str | Path
    """Hub id or folder."""
    quantization: Quantization = Quantization.NF4
    """How linear layers are held."""
    device: str | None = None
    """torch device; None: ``cuda`` where there is one, else ``cpu``."""
    compute_dtype: str = "auto"
    """``"fp32"``, ``"bf16"`` or ``"auto"``: bf16 on GPUs and CPUs that multiply it, fp32 on others."""
    base_dropout: bool = False
    """Whether the base's own dropout layers are on in training."""

    def __post_init__(self) -> None:
        resolve_compute_dtype(self.compute_dtype, self.torch_device)

    @property
    def torch_device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True, kw_only=True)
class TunedModel:
    """A base model with the trainables of a run on it."""

    preprocessor: Preprocessor
    """Makes examples of rows, and batches of examples."""
    tuner: Tuner
    """Holds the trainables."""
    objective: Objective
    """What the run's task minimises."""
    context: Context
    """What the objective computes with."""


class ResidentBase(Protocol):
    """What a trainer tunes."""

    settings: BaseSettings
    """Which model, and how it is held."""

    def tuned(self, manifest: Manifest, lora: LoraSettings, rank: int | None, residual: bool) -> TunedModel:
        """The model for a run; what an earlier call for another run gave must no longer be used.

        Args:
            manifest: The run.
            lora: The device's own LoRA settings.
            rank: LoRA rank that the device asks for.
            residual: Whether it takes the frozen residual.

        Raises:
            BaseModelError: The base or its tokenizer or image processor is not the run's.
            ConfigError: The run does not allow this quantisation, or its method is unknown here.
        """


class OwnBase:
    """Implements :class:`ResidentBase` for one trainer, which is given the loaded model itself.

    Args:
        settings: Which model, and how it is held.
    """

    def __init__(self, settings: BaseSettings) -> None:
        self.settings = settings

    def tuned(self, manifest: Manifest, lora: LoraSettings, rank: int | None, residual: bool) -> TunedModel:
        """See :meth:`ResidentBase.tuned`."""
        del rank, residual
        loaded = _Loaded.of(self.settings, manifest)
        return loaded.tuned(loaded.backbone, lora)


class SharedBase:
    """Implements :class:`ResidentBase` for many trainers in one process, which take turns.

    Its tensors are in memory once. Trainers of the same rank and scaling share one model too, so that switching from
    one device to the next sets values and builds nothing: what one trainer loads or installs replaces what another did.

    Args:
        settings: Which model, and how it is held.
    """

    def __init__(self, settings: BaseSettings) -> None:
        self.settings = settings
        self._loaded: _Loaded | None = None
        self._tuned: dict[tuple[LoraSettings, int | None, bool], TunedModel] = {}

    def tuned(self, manifest: Manifest, lora: LoraSettings, rank: int | None, residual: bool) -> TunedModel:
        """See :meth:`ResidentBase.tuned`."""
        if self._loaded is None or self._loaded.manifest != manifest:
            self._loaded, self._tuned = None, {}  # so that two bases are never in memory at once
            self._loaded = _Loaded.of(self.settings, manifest)
        key = lora, rank, residual
        if key not in self._tuned:
            self._tuned[key] = self._loaded.tuned(self._loaded.view(), lora)
        return self._tuned[key]


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A base model, checked against a run and loaded for it."""

    settings: BaseSettings
    manifest: Manifest
    preprocessor: Preprocessor
    backbone: PreTrainedModel

    @classmethod
    def of(cls, settings: BaseSettings, manifest: Manifest) -> _Loaded:
        if settings.quantization not in manifest.base.quantizations:
            allowed = ", ".join(manifest.base.quantizations)
            raise ConfigError(f"quantization: the run allows {allowed}, this device is set to {settings.quantization}")
        checkpoint = Checkpoint.find(settings.model)
        _check_same_base(checkpoint, manifest)
        backbone = load_backbone(
            checkpoint,
            manifest,
            quantization=settings.quantization,
            device=settings.torch_device,
            compute_dtype=resolve_compute_dtype(settings.compute_dtype, settings.torch_device),
        )
        if not settings.base_dropout:
            switch_off_dropout(backbone)
        preprocessor = _preprocessor(checkpoint, manifest.task, backbone)
        return cls(settings=settings, manifest=manifest, preprocessor=preprocessor, backbone=backbone)

    def view(self) -> PreTrainedModel:
        """Modules of their own over the same tensors, but for those that the run trains as they are."""
        own = {tensor.name for tensor in self.manifest.dense}
        tensors = (*self.backbone.named_parameters(), *self.backbone.named_buffers())
        return copy.deepcopy(self.backbone, {id(tensor): tensor for name, tensor in tensors if name not in own})

    def tuned(self, backbone: PreTrainedModel, lora: LoraSettings) -> TunedModel:
        model = TaskModel(backbone, self.manifest.task)
        return TunedModel(
            preprocessor=self.preprocessor,
            tuner=method_of(self.manifest).tuner(model, self.manifest, lora),
            objective=objective_of(self.manifest.task),
            context=Context(model=model, preprocessor=self.preprocessor, device=self.settings.torch_device),
        )


def _preprocessor(checkpoint: Checkpoint, task: Task, backbone: PreTrainedModel) -> Preprocessor:
    if task.kind.on_images:
        return ImagePreprocessor(task=task, processor=load_image_processor(checkpoint))
    return TextPreprocessor(task=task, tokenizer=load_tokenizer(checkpoint), with_types=takes_types(backbone))


def _check_same_base(checkpoint: Checkpoint, manifest: Manifest) -> None:
    found, expected = checkpoint.fingerprint(), manifest.base.fingerprint
    if found != expected:
        raise BaseModelError(
            f"{checkpoint.name}: its weights have fingerprint {found[:12]}…, the run tunes {manifest.base.name} "
            f"with {expected[:12]}…: use that model"
        )
    if manifest.task.kind.on_images:
        what, same = "image processor", checkpoint.image_processor_digest() == manifest.base.image_processor_digest
    else:
        what, same = "tokenizer", checkpoint.tokenizer_digest() == manifest.base.tokenizer_digest
    if not same:
        raise BaseModelError(f"{checkpoint.name}: its {what} is not the one of {manifest.base.name} that the run uses")
