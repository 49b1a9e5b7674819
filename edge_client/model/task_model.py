"""Puts pooling and a head on a base model, where the architecture's own are not used."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from edge_client.errors import BaseModelError
from protocol.manifest import Pooling, Task, TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["HEAD", "TaskModel", "head_outputs", "takes_types"]

HEAD = "classifier"
"""Name of the linear head on a pooled base; its tensors are ``classifier.weight`` and ``classifier.bias``."""


def head_outputs(task: Task) -> int:
    """Rows of the linear head on a pooled base; 0 where the task has none."""
    if task.pooling is Pooling.MODEL:
        return 0
    if task.kind.labelled:
        return len(task.labels)
    return 1 if task.kind is TaskKind.REGRESSION else 0


def takes_types(backbone: PreTrainedModel) -> bool:
    """Whether a model takes token type ids."""
    return "token_type_ids" in inspect.signature(backbone.forward).parameters


class TaskModel(nn.Module):
    """A base model with what the task needs on top of it.

    Args:
        backbone: A transformers model; adapters may be injected into it later.
        task: Decides pooling and head.

    Raises:
        BaseModelError: An embedding task asks for the model's own pooling, and it has none.
    """

    def __init__(self, backbone: PreTrainedModel, task: Task) -> None:
        super().__init__()
        self.backbone = backbone
        self._pooling = task.pooling
        self.head: nn.Linear | None = None
        outputs = head_outputs(task)
        if outputs:
            self.head = nn.Linear(backbone.config.hidden_size, outputs, device=backbone.device, dtype=torch.float32)
        if task.kind is TaskKind.EMBEDDING and task.pooling is Pooling.MODEL and not hasattr(backbone, "pooler"):
            raise BaseModelError(f"{type(backbone).__name__} has no pooling of its own: use pooling 'mean' or 'cls'")

    def train(self, mode: bool = True) -> Self:
        """As any module's, but for batch normalisation: its statistics stay the base's, since they do not travel."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def owner(self, name: str) -> tuple[nn.Module, nn.Parameter]:
        """The module that owns a parameter, and the parameter, by the name that the manifest gives it.

        Raises:
            BaseModelError: There is none.
        """
        path, _, last = name.rpartition(".")
        try:
            module = self.head if self.head is not None and path == HEAD else self.backbone.get_submodule(path)
            return module, module.get_parameter(last)
        except AttributeError as error:
            raise BaseModelError(f"the manifest names {name!r}, which {type(self.backbone).__name__} lacks") from error

    def pooled(self, batch: dict[str, Tensor]) -> Tensor:
        """One fp32 vector per text or image, ``[batch, hidden]``."""
        output = self.backbone(**batch)
        if self._pooling is Pooling.MODEL:
            pooled: Tensor = output.pooler_output
            return pooled.float()
        states = output.last_hidden_state.float()
        if self._pooling is Pooling.CLS:
            first: Tensor = states[:, 0]
            return first
        if "pixel_values" in batch:
            return self._patches(states, batch["pixel_values"]).mean(1)
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        mean: Tensor = (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return mean

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """fp32 scores: ``[batch, labels]`` of a head, ``[batch, tokens, vocabulary]`` of a language model."""
        if self.head is not None:
            scores: Tensor = self.head(self.pooled(batch))
            return scores
        logits: Tensor = self.backbone(**batch).logits
        return logits.float()

    def _patches(self, states: Tensor, pixels: Tensor) -> Tensor:
        """The states of an image's patches, which stand behind the class token and others of its kind."""
        patch = self.backbone.config.patch_size
        height, width = (patch, patch) if isinstance(patch, int) else patch
        return states[:, -(pixels.shape[-2] // height) * (pixels.shape[-1] // width) :]
