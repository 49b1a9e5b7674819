"""Head tuning: the task's head alone, on the frozen features of the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edge_client.errors import ConfigError
from edge_client.methods.dense import DenseTuner
from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from protocol.manifest import Quantization

if TYPE_CHECKING:
    from edge_client.methods.scaling import LoraSettings
    from edge_client.model.task_model import TaskModel
    from protocol.manifest import Manifest

__all__ = ["Head"]


@dataclass(frozen=True)
class Head(Method):
    """Trains what every method trains besides, and nothing else."""

    name: ClassVar[str] = "head"
    quantizations: ClassVar[frozenset[Quantization]] = frozenset(Quantization)

    def declare(self, subject: Subject) -> Trainables:
        """See :meth:`edge_client.methods.interface.Method.declare`."""
        if not subject.head:
            raise ConfigError(f"method 'head': {subject.task.kind} tasks have no head to train")
        return Trainables()

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """See :meth:`edge_client.methods.interface.Method.tuner`."""
        del lora
        return DenseTuner(model, manifest)
