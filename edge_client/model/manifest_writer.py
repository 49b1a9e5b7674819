"""Writes a run's manifest from a base model and a task, without loading a single weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.errors import BaseModelError, ConfigError
from edge_client.model.checkpoint import Checkpoint
from protocol.initializers import Distribution, Initializer
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Pooling, Quantization, Task, TaskKind

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["write_manifest"]


def write_manifest(
    model: str | Path,
    task: Task,
    *,
    rank_max: int = 16,
    target_modules: Sequence[str] | None = None,
    train_head: bool = True,
    head_seed: int = 0,
    quantizations: Sequence[Quantization] = tuple(Quantization),
    name: str | None = None,
) -> Manifest:
    """Describes a run on this model for this task.

    Args:
        model: Hub id or folder.
        task: What the run tunes for.
        rank_max: Highest LoRA rank any device may train.
        target_modules: Suffixes of the linear layers to tune, as PEFT takes them (``["query", "value"]``); None: all
            linear layers of the body but a pooler that the task does not use.
        train_head: Whether the head is tuned; one that the checkpoint does not have must be.
        head_seed: Seed of a fresh head's starting values.
        quantizations: What devices of this run may hold the base in.
        name: Name of the base for people; None: the hub id or the folder's name.

    Raises:
        BaseModelError: The checkpoint cannot be read, or does not fit the task.
        ConfigError: A target matches no linear layer, or a fresh head is not to be trained.
    """
    from edge_client.model.base_model import meta_backbone

    checkpoint = Checkpoint.find(model)
    backbone = meta_backbone(checkpoint, task)
    return Manifest(
        base=BaseModel(
            name=name or checkpoint.name,
            fingerprint=checkpoint.fingerprint(),
            architecture=type(backbone).__name__,
            tokenizer_digest=checkpoint.tokenizer_digest(),
            quantizations=tuple(quantizations),
        ),
        task=task,
        rank_max=rank_max,
        low_rank=tuple(_targets(backbone, task, target_modules)),
        dense=tuple(_dense(backbone, checkpoint, task, train_head, head_seed)),
    )


def _targets(backbone: PreTrainedModel, task: Task, suffixes: Sequence[str] | None) -> list[LowRankModule]:
    linear = dict(_linear_layers(backbone))
    if suffixes is not None:
        for suffix in suffixes:
            if not any(_matches(name, suffix) for name in linear):
                raise ConfigError(
                    f"target_modules: {suffix!r} matches no linear layer; there are {_last_parts(linear)}"
                )
        chosen = [name for name in linear if any(_matches(name, suffix) for suffix in suffixes)]
    else:
        unused = {"pooler"} if task.pooling is not Pooling.MODEL else set()
        chosen = [name for name in linear if unused.isdisjoint(name.split("."))]
    return [LowRankModule(name=name, out_features=linear[name][0], in_features=linear[name][1]) for name in chosen]


def _linear_layers(backbone: PreTrainedModel) -> Iterator[tuple[str, tuple[int, int]]]:
    """Linear layers of the body, with their output and input widths; heads lie outside it."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    body = {id(module) for module in backbone.base_model.modules()}
    for name, module in backbone.named_modules():
        if id(module) not in body:
            continue
        if isinstance(module, nn.Linear):
            yield name, (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            yield name, (module.weight.shape[1], module.weight.shape[0])


def _dense(
    backbone: PreTrainedModel, checkpoint: Checkpoint, task: Task, train_head: bool, seed: int
) -> Iterator[DenseTensor]:
    """Head tensors, fresh ones with an initializer; and any other tensor that the checkpoint does not have."""
    from edge_client.model.task_model import HEAD, head_outputs

    outputs, hidden = head_outputs(task), getattr(backbone.config, "hidden_size", 0)
    if outputs:
        for name, shape in ((f"{HEAD}.weight", (outputs, hidden)), (f"{HEAD}.bias", (outputs,))):
            yield DenseTensor(name=name, shape=shape, initializer=_initializer(name, shape, backbone, seed))
    shapes, prefix = checkpoint.shapes(), backbone.base_model_prefix
    head = {id(p) for p in backbone.parameters()} - {id(p) for p in backbone.base_model.parameters()}
    if task.kind is TaskKind.CAUSAL_LM:
        head = set()  # the output embedding is the vocabulary's, not the task's
    for name, parameter in backbone.named_parameters():
        fresh = _is_fresh(name, tuple(parameter.shape), shapes, prefix) and not _is_tied(backbone, name)
        if fresh and not train_head:
            raise ConfigError(f"the checkpoint does not have {name!r}: leave train_head on")
        if fresh or (train_head and id(parameter) in head):
            initializer = _initializer(name, tuple(parameter.shape), backbone, seed) if fresh else None
            yield DenseTensor(name=name, shape=tuple(parameter.shape), initializer=initializer)


def _is_fresh(name: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]], prefix: str) -> bool:
    """Whether the checkpoint lacks a parameter, under its name, with or without the body's prefix, or TF spelling."""
    spellings = {name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"}
    spellings |= {s.replace("LayerNorm.weight", "LayerNorm.gamma") for s in spellings}
    spellings |= {s.replace("LayerNorm.bias", "LayerNorm.beta") for s in spellings}
    return not any(shapes.get(spelling) == shape for spelling in spellings)


def _is_tied(backbone: PreTrainedModel, name: str) -> bool:
    """Whether a parameter is another name for one that the checkpoint has, such as an output embedding."""
    return name in (getattr(backbone, "all_tied_weights_keys", None) or {})


def _initializer(name: str, shape: tuple[int, ...], backbone: nn.Module, seed: int) -> Initializer:
    if len(shape) == 1:
        if name.endswith("weight"):
            raise BaseModelError(f"the checkpoint lacks the normalisation {name!r}: it is not of this architecture")
        return Initializer(distribution=Distribution.ZEROS)
    scale = float(getattr(backbone.config, "initializer_range", None) or 1.0 / math.sqrt(shape[-1]))
    return Initializer(distribution=Distribution.NORMAL, scale=scale, seed=seed)


def _matches(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _last_parts(names: dict[str, tuple[int, int]]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))
