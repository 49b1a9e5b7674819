"""Writes a run's manifest from a base model and a task, without loading a single weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.errors import BaseModelError, ConfigError
from edge_client.model.checkpoint import Checkpoint
from protocol.initializers import Distribution, Initializer
from protocol.manifest import BaseModel, DenseTensor, Manifest, Quantization, Task, TaskKind

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from edge_client.methods import Method

__all__ = ["write_manifest"]


def write_manifest(
    model: str | Path,
    task: Task,
    *,
    method: Method | None = None,
    rank_max: int = 16,
    train_head: bool = True,
    head_seed: int = 0,
    quantizations: Sequence[Quantization] | None = None,
    name: str | None = None,
) -> Manifest:
    """Describes a run on this model for this task.

    Args:
        model: Hub id or folder.
        task: What the run tunes for.
        method: How; None: LoRA on all linear layers.
        rank_max: Highest rank any device may train.
        train_head: Whether the head is tuned; one that the checkpoint does not have must be.
        head_seed: Seed of fresh tensors' starting values.
        quantizations: What devices of this run may hold the base in; None: all that the method can tune.
        name: Name of the base for people; None: the hub id or the folder's name.

    Raises:
        BaseModelError: The checkpoint cannot be read, or does not fit the task.
        ConfigError: The method cannot tune this model or task, or not on a base held so; or a fresh head is not to be
            trained.
    """
    from edge_client.methods import Subject
    from edge_client.methods.lora import Lora
    from edge_client.model.base_model import meta_backbone

    method = method or Lora()
    checkpoint = Checkpoint.find(model)
    backbone = meta_backbone(checkpoint, task)
    head = tuple(_head(backbone, checkpoint, task, train_head, head_seed))
    declared = method.declare(Subject(backbone=backbone, task=task, rank_max=rank_max, head=head, seed=head_seed))
    return Manifest(
        base=BaseModel(
            name=name or checkpoint.name,
            fingerprint=checkpoint.fingerprint(),
            architecture=type(backbone).__name__,
            tokenizer_digest=None if task.kind.on_images else checkpoint.tokenizer_digest(),
            image_processor_digest=checkpoint.image_processor_digest() if task.kind.on_images else None,
            quantizations=_allowed(method, quantizations),
        ),
        task=task,
        rank_max=rank_max,
        method=method.name,
        method_options=method.options,
        low_rank=declared.low_rank,
        dense=(*head, *declared.dense),
    )


def _allowed(method: Method, asked: Sequence[Quantization] | None) -> tuple[Quantization, ...]:
    if asked is None:
        return tuple(each for each in Quantization if each in method.quantizations)
    impossible = [each for each in asked if each not in method.quantizations]
    if impossible:
        possible = ", ".join(each for each in Quantization if each in method.quantizations)
        raise ConfigError(
            f"method {method.name!r} cannot tune a base held in {impossible[0]}, since it trains the weights "
            f"themselves: it takes {possible}"
        )
    return tuple(asked)


def _head(
    backbone: PreTrainedModel, checkpoint: Checkpoint, task: Task, train_head: bool, seed: int
) -> Iterator[DenseTensor]:
    """Head tensors, fresh ones with an initializer; and any other tensor that the checkpoint does not have."""
    from edge_client.model.base_model import absent_tensors
    from edge_client.model.task_model import HEAD, head_outputs

    outputs, hidden = head_outputs(task), getattr(backbone.config, "hidden_size", 0)
    if outputs:
        for name, shape in ((f"{HEAD}.weight", (outputs, hidden)), (f"{HEAD}.bias", (outputs,))):
            yield DenseTensor(name=name, shape=shape, initializer=_initializer(name, shape, backbone, seed))
    absent = absent_tensors(checkpoint, backbone, task)
    head = {id(p) for p in backbone.parameters()} - {id(p) for p in backbone.base_model.parameters()}
    if task.kind is TaskKind.CAUSAL_LM:
        head = set()  # the output embedding is the vocabulary's, not the task's
    for name, parameter in backbone.named_parameters():
        fresh = name in absent
        if fresh and not train_head:
            raise ConfigError(f"the checkpoint does not have {name!r}: leave train_head on")
        if fresh or (train_head and id(parameter) in head):
            initializer = _initializer(name, tuple(parameter.shape), backbone, seed) if fresh else None
            yield DenseTensor(name=name, shape=tuple(parameter.shape), initializer=initializer)


def _initializer(name: str, shape: tuple[int, ...], backbone: nn.Module, seed: int) -> Initializer:
    if len(shape) == 1:
        if name.endswith("weight"):
            raise BaseModelError(f"the checkpoint lacks the normalisation {name!r}: it is not of this architecture")
        return Initializer(distribution=Distribution.ZEROS)
    scale = float(getattr(backbone.config, "initializer_range", None) or 1.0 / math.sqrt(shape[-1]))
    return Initializer(distribution=Distribution.NORMAL, scale=scale, seed=seed)
