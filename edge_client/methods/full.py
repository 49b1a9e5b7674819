"""Full fine-tuning: every parameter of the base model, as it is.

What travels, and what the aggregator keeps, is as large as the model: a hand-out is the model in the run's codec, the
state is the model in float64 (eight bytes a parameter), and a device holds three fp32 copies beside the gradient and
the optimizer's moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from edge_client.methods.dense import DenseTuner, base_tensors
from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from protocol.manifest import Quantization

if TYPE_CHECKING:
    from edge_client.methods.scaling import LoraSettings
    from edge_client.model.task_model import TaskModel
    from protocol.manifest import Manifest

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(Method):
    """Trains the whole model, in fp32; a device set to bf16 computes its products in bf16."""

    name: ClassVar[str] = "full"
    quantizations: ClassVar[frozenset[Quantization]] = frozenset({Quantization.FP32, Quantization.BF16})

    def declare(self, subject: Subject) -> Trainables:
        """See :meth:`edge_client.methods.interface.Method.declare`."""
        return Trainables(dense=tuple(base_tensors(subject)))

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """See :meth:`edge_client.methods.interface.Method.tuner`."""
        del lora
        if model.backbone.dtype is not torch.float32:
            _mix_precisions(model.backbone, model.backbone.dtype)
        return DenseTuner(model, manifest)


def _mix_precisions(backbone: Any, products: torch.dtype) -> None:
    """Holds every parameter in fp32, since a step is often smaller than the gap between two bf16 numbers.

    Reference: Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740, section 3.1.
    """
    backbone.float()
    backbone.forward = torch.autocast(backbone.device.type, products)(backbone.forward)
