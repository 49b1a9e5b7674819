"""What each task minimises, and what it reports: one objective per task kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edge_client.data.batching import in_order
from edge_client.data.preprocessing import Preprocessor
from edge_client.data.tasks import Encoded, Example, Image
from edge_client.model.task_model import TaskModel
from edge_client.training import metrics
from protocol.manifest import Task, TaskKind

__all__ = ["Context", "Objective", "embed", "objective_of"]

_TEMPERATURE = 0.05
"""Of the contrastive loss: the scale 20 that sentence encoders such as all-MiniLM-L6-v2 were trained with."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an objective computes with."""

    model: TaskModel
    """The model, adapters and head included."""
    preprocessor: Preprocessor
    """Makes batches."""
    device: torch.device
    """Where the model is."""

    def tensors(self, examples: Sequence[Example], side: int = 0) -> dict[str, Tensor]:
        """One side of a batch of examples."""
        return self.collate([example.inputs[side] for example in examples])

    def collate(self, inputs: Sequence[Encoded | Image]) -> dict[str, Tensor]:
        """A batch of inputs, all texts or all images."""
        return self.preprocessor.collate(inputs, self.device)


class Objective(Protocol):
    """One task's loss and metrics."""

    splittable: bool
    """Whether a batch's loss is a sum over its examples, so that micro-batches give the same gradient."""

    def units(self, examples: Sequence[Example]) -> int:
        """What a mean loss is a mean over: examples, or the tokens scored."""

    def loss_sum(self, context: Context, examples: Sequence[Example]) -> Tensor:
        """Loss summed over the units of these examples."""

    def evaluate(self, context: Context, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        """Mean loss and metrics; the caller has switched gradients off and the model to evaluation."""


def objective_of(task: Task) -> Objective:
    """The objective of a task."""
    if task.kind.labelled:
        return _Classification(len(task.labels))
    if task.kind is TaskKind.REGRESSION:
        return _Regression()
    return _Contrastive() if task.kind is TaskKind.EMBEDDING else _Language()


def embed(context: Context, texts: Sequence[Encoded | Image], batch_size: int) -> Tensor:
    """Unit vectors ``[n, d]``, fp32 on the CPU, in the order of ``texts``."""
    parts, order = [], in_order([len(one) for one in texts], batch_size)
    for batch in order:
        vectors = context.model.pooled(context.collate([texts[index] for index in batch]))
        parts.append(functional.normalize(vectors, dim=-1).cpu())
    found = torch.cat(parts)
    return found[torch.from_numpy(np.argsort(np.concatenate(order)))]


class _Classification:
    splittable = True

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def units(self, examples: Sequence[Example]) -> int:
        return len(examples)

    def loss_sum(self, context: Context, examples: Sequence[Example]) -> Tensor:
        logits = context.model.logits(context.tensors(examples))
        return functional.cross_entropy(logits, _labels(examples, logits.device).long(), reduction="sum")

    def evaluate(self, context: Context, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        logits, labels = _scores(context, examples, batch_size)
        loss = functional.cross_entropy(logits, labels.long())
        found = metrics.classification(logits.argmax(-1).numpy(), labels.long().numpy(), self._classes)
        return {"loss": float(loss), **found}


class _Regression:
    splittable = True

    def units(self, examples: Sequence[Example]) -> int:
        return len(examples)

    def loss_sum(self, context: Context, examples: Sequence[Example]) -> Tensor:
        scores = context.model.logits(context.tensors(examples)).squeeze(-1)
        return functional.mse_loss(scores, _labels(examples, scores.device), reduction="sum")

    def evaluate(self, context: Context, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        scores, labels = _scores(context, examples, batch_size)
        found = metrics.regression(scores.squeeze(-1).double().numpy(), labels.double().numpy())
        return {"loss": found["mse"], **found}


class _Contrastive:
    """InfoNCE with the other targets of the batch as negatives (van den Oord et al. 2018, arXiv:1807.03748, eq. 4)."""

    splittable = False

    def units(self, examples: Sequence[Example]) -> int:
        return len(examples)

    def loss_sum(self, context: Context, examples: Sequence[Example]) -> Tensor:
        queries = functional.normalize(context.model.pooled(context.tensors(examples, 0)), dim=-1)
        targets = functional.normalize(context.model.pooled(context.tensors(examples, 1)), dim=-1)
        scores = queries @ targets.T / _TEMPERATURE
        return functional.cross_entropy(scores, torch.arange(len(examples), device=scores.device), reduction="sum")

    def evaluate(self, context: Context, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        queries = embed(context, [example.inputs[0] for example in examples], batch_size)
        targets = embed(context, [example.inputs[1] for example in examples], batch_size)
        loss = functional.cross_entropy(queries @ targets.T / _TEMPERATURE, torch.arange(len(examples)))
        return {"loss": float(loss), **metrics.retrieval(queries.numpy(), targets.numpy())}


class _Language:
    splittable = True

    def units(self, examples: Sequence[Example]) -> int:
        return sum(example.targets for example in examples)

    def loss_sum(self, context: Context, examples: Sequence[Example]) -> Tensor:
        batch = context.tensors(examples)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, example in enumerate(examples):
            labels[row, : example.unscored] = -100
        logits = context.model.logits(batch)
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )

    def evaluate(self, context: Context, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        batches = in_order([example.length for example in examples], batch_size)
        total = sum(float(self.loss_sum(context, [examples[index] for index in batch])) for batch in batches)
        loss = total / self.units(examples)
        return {"loss": loss, **metrics.language(loss)}


def _labels(examples: Sequence[Example], device: torch.device) -> Tensor:
    return torch.tensor([example.label for example in examples], dtype=torch.float32, device=device)


def _scores(context: Context, examples: Sequence[Example], batch_size: int) -> tuple[Tensor, Tensor]:
    """A head's scores and the labels, in the same (shuffled) order, on the CPU."""
    order = in_order([example.length for example in examples], batch_size)
    scores = [context.model.logits(context.tensors([examples[index] for index in batch])).cpu() for batch in order]
    return torch.cat(scores), _labels([examples[index] for index in np.concatenate(order)], torch.device("cpu"))
