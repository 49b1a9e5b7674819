"""BitFit: the biases of the base model, those of its normalisations included, and the head.

A key's bias moves every score of a query alike, which the softmax undoes, unless positions are rotated in after it: so
in BERT and its kin these biases have no gradient but rounding noise. They are declared all the same, as the reference
does it.

Reference: Ben Zaken et al., "BitFit", 2022, arXiv:2106.10199, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edge_client.errors import ConfigError
from edge_client.methods.dense import DenseTuner, base_tensors
from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from edge_client.model.base_model import is_bias
from protocol.manifest import Quantization

if TYPE_CHECKING:
    from edge_client.methods.scaling import LoraSettings
    from edge_client.model.task_model import TaskModel
    from protocol.manifest import Manifest

__all__ = ["BitFit"]


@dataclass(frozen=True)
class BitFit(Method):
    """Trains all biases; a base held in few bits keeps its weights so."""

    name: ClassVar[str] = "bitfit"
    quantizations: ClassVar[frozenset[Quantization]] = frozenset(Quantization)

    def declare(self, subject: Subject) -> Trainables:
        """See :meth:`edge_client.methods.interface.Method.declare`."""
        biases = tuple(tensor for tensor in base_tensors(subject) if is_bias(tensor.name))
        if not biases:
            raise ConfigError(
                f"method 'bitfit': {type(subject.backbone).__name__} has no biases: tune it by another method"
            )
        return Trainables(dense=biases)

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """See :meth:`edge_client.methods.interface.Method.tuner`."""
        del lora
        return DenseTuner(model, manifest)
