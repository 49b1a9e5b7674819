"""Writes a run's manifest from a base model and a task, without loading a single weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protocol.manifest import Manifest, Quantization, Task

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
            linear layers but heads and poolers.
        train_head: Whether the head is tuned; a head that the checkpoint does not have must be.
        head_seed: Seed of a fresh head's starting values.
        quantizations: What devices of this run may hold the base in.
        name: Name of the base for people; None: the hub id or the folder's name.

    Raises:
        BaseModelError: The checkpoint cannot be read, or does not fit the task.
        ConfigError: ``target_modules`` match nothing.
    """
    raise NotImplementedError
