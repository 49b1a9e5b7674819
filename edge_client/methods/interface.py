"""What a tuning method has to do: declare what a run trains, and hold that on a device's base model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import nn

from protocol.manifest import DenseTensor, LowRankModule, Manifest, Quantization, Task
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edge_client.methods.scaling import LoraSettings
    from edge_client.model.task_model import TaskModel
    from protocol.typed import Option

__all__ = ["Method", "Subject", "Trainables", "Tuner"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a method is to tune."""

    backbone: PreTrainedModel
    """The base model on the meta device: shapes without values."""
    task: Task
    """What for."""
    rank_max: int
    """Highest rank of a device."""
    head: tuple[DenseTensor, ...]
    """The tensors of the task's head, which every method trains besides."""
    seed: int
    """Of fresh values."""

    def seed_of(self, name: str) -> int:
        """The seed of one fresh tensor's values, its own: two of one shape must not start alike."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:7], "big")


@dataclass(frozen=True, kw_only=True)
class Trainables:
    """What a method trains, beside the head."""

    low_rank: tuple[LowRankModule, ...] = ()
    """Linear maps tuned in product space."""
    dense: tuple[DenseTensor, ...] = ()
    """Tensors tuned as they are."""


class Tuner(Protocol):
    """Holds one run's trainables on the resident base model, from assignment to assignment."""

    @property
    def model(self) -> nn.Module:
        """The base model with what was last loaded, usable as it is."""

    def load(self, handout: AdapterTensors, rank: int, active: Layout) -> list[nn.Parameter]:
        """Sets every trainable to the hand-out and freezes what is not active.

        Args:
            handout: In the run's whole layout; its first ``rank`` slots may be trained, the rest stay frozen.
            rank: LoRA rank.
            active: What is to be trained, but for the factors that it leaves out.

        Returns:
            The parameters to optimise: all that require gradients, fp32, gradients cleared.

        Raises:
            AggregatorError: The hand-out does not fit.
        """

    def change(self, active: Layout) -> AdapterTensors:
        """What training changed since :meth:`load`, in the layout ``active``, relative to exactly what was loaded."""


class Method(Protocol):
    """One way to tune a base model: a frozen dataclass, whose fields are the settings that a run's devices share."""

    name: ClassVar[str]
    """What a manifest calls it."""
    quantizations: ClassVar[frozenset[Quantization]]
    """What a device may hold the base in."""

    def declare(self, subject: Subject) -> Trainables:
        """What a run trains; its names are those that :meth:`tuner` finds on the device's model.

        Raises:
            ConfigError: This model or task cannot be tuned so; says why.
        """

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """Makes a device's model ready.

        Args:
            model: Base model with pooling and head, frozen; modules may be installed in it.
            manifest: The run, of this method.
            lora: The device's own LoRA settings.

        Raises:
            BaseModelError: The model has not what the manifest names.
        """

    @property
    def options(self) -> Mapping[str, Option]:
        """The settings, as a manifest holds them."""
        described: Any = self
        return {field.name: getattr(self, field.name) for field in fields(described)}
