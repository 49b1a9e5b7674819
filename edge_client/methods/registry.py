"""Finds the tuning method that a manifest names."""

from __future__ import annotations

from edge_client.errors import ConfigError
from edge_client.methods.interface import Method
from edge_client.methods.lora import Lora, LoraSettings
from edge_client.model.task_model import TaskModel
from protocol.manifest import Manifest

__all__ = ["build_method"]


def build_method(model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Method:
    """The manifest's method on this base model.

    Args:
        model: Base model with pooling and head.
        manifest: The run.
        lora: This device's own LoRA settings.

    Raises:
        ConfigError: This version does not know the method.
    """
    if manifest.method != "lora":
        raise ConfigError(f"the run tunes by {manifest.method!r}; this version knows 'lora': upgrade tributary-fl")
    return Lora(model, manifest, lora)
