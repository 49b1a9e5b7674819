"""Puts what a run came to on its base model again: `tributary-aggregator export` writes it, an app uses it.

torch comes in when a model is asked for.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.errors import ConfigError
from edge_client.model.checkpoint import Checkpoint
from protocol.errors import RemoteProtocolError
from protocol.exported import FILES, MANIFEST_FILE, ExportedAdapter
from protocol.manifest import Quantization
from protocol.payload import Layout

if TYPE_CHECKING:
    from torch import nn
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase

    from edge_client.model.task_model import TaskModel
    from protocol.manifest import Manifest

__all__ = ["ExportedModel", "load_exported", "read_exported", "save_merged"]

_PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """A tuned model, ready to use: in evaluation mode, nothing of it trainable."""

    manifest: Manifest
    """The run that tuned it: its task, labels, template, method."""
    model: nn.Module
    """The transformers model with the result in it; a ``PeftModel`` around it where the method is PEFT's."""
    task_model: TaskModel
    """The same with the run's own pooling and head: ``logits(batch)``, ``pooled(batch)``."""
    processor: PreTrainedTokenizerBase | BaseImageProcessor
    """The base's tokenizer, or its image processor."""


def load_exported(
    folder: str | Path,
    model: str | Path,
    *,
    quantization: Quantization | str = Quantization.FP32,
    device: str | None = None,
    compute_dtype: str = "auto",
    merged: bool = False,
) -> ExportedModel:
    """Loads what ``tributary-aggregator export`` wrote in the format ``tributary``, whatever the tuning method.

    Args:
        folder: The exported folder.
        model: Hub id or folder of the base model that the run tuned, unquantised.
        quantization: How to hold the base: ``fp32``, ``bf16``, ``int8`` or ``nf4``, of those that the method can tune.
            What the run allowed its devices does not matter here.
        device: torch device; None: ``cuda`` where there is one, else ``cpu``.
        compute_dtype: ``"fp32"``, ``"bf16"`` or ``"auto"``: bf16 on GPUs and CPUs that multiply it, fp32 on others.
        merged: Make ``model`` a plain transformers model for ``save_pretrained``, low-rank products added to its
            weights. The base is then held in fp32.

    Raises:
        ConfigError: The folder is no such export, or damaged; this version does not know the run's method; the base
            cannot be held so; the architecture has no place for all of the result, which ``merged`` needs; or torch is
            missing.
        BaseModelError: The base, its tokenizer or its image processor is not the one that the run tuned.
    """
    exported = read_exported(Path(folder))
    held_in = _quantization(quantization, merged)
    try:
        from edge_client.methods.scaling import LoraSettings
        from edge_client.model.base_model import load_image_processor, load_tokenizer
        from edge_client.trainers.resident_base import BaseSettings, OwnBase
    except ImportError as error:
        raise ConfigError(f"a model needs torch ({error}): pip install 'tributary-fl[client]'") from error
    manifest, rank, checkpoint = exported.manifest, exported.tensors.rank, Checkpoint.find(model)
    held = BaseSettings(model=model, quantization=held_in, device=device, compute_dtype=compute_dtype)
    tuned = OwnBase(held).tuned(_for_anyone(manifest), LoraSettings(), rank or None, residual=False)
    if merged:
        _check_place(manifest, checkpoint)
    tuned.tuner.load(exported.tensors, rank, Layout((), ()))
    tuner_model: Any = tuned.tuner.model
    if merged and manifest.low_rank:
        tuner_model = tuner_model.merge_and_unload()
    return ExportedModel(
        manifest=manifest,
        model=tuner_model.eval(),
        task_model=tuned.context.model.eval(),
        processor=(load_image_processor if manifest.task.kind.on_images else load_tokenizer)(checkpoint),
    )


def save_merged(folder: str | Path, model: str | Path, out: str | Path) -> None:
    """Writes an exported run as a plain transformers checkpoint in fp32, with the base's tokenizer or image processor.

    The folder appears whole or not at all.

    Args:
        folder: The exported folder.
        model: Hub id or folder of the base model that the run tuned.
        out: Folder to write, empty or not there; its parents are made.

    Raises:
        ConfigError: As :func:`load_exported`; or ``out`` has something in it, or cannot be written.
        BaseModelError: As :func:`load_exported`.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder: choose another")
    merged = load_exported(folder, model, device="cpu", merged=True)
    saved: Any = merged.model
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            fresh = Path(scratch) / out.name
            saved.save_pretrained(fresh)
            merged.processor.save_pretrained(fresh)
            fresh.replace(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}") from error


def read_exported(folder: Path) -> ExportedAdapter:
    """Reads an exported folder without a model, and without torch.

    Raises:
        ConfigError: It is none, or damaged.
    """
    if not (folder / MANIFEST_FILE).is_file() and (folder / _PEFT_CONFIG).is_file():
        raise ConfigError(
            f"{folder} is a PEFT folder: peft.PeftModel.from_pretrained(base, folder) loads it, or export the run with "
            "--format tributary"
        )
    try:
        return ExportedAdapter.of_files({name: (folder / name).read_bytes() for name in FILES})
    except OSError as error:
        raise ConfigError(
            f"{folder} is not an exported run ({error}): name what `tributary-aggregator export` wrote"
        ) from error
    except RemoteProtocolError as error:
        raise ConfigError(f"{folder} is damaged, or of another version ({error}): export the run again") from error


def _quantization(name: str, merged: bool) -> Quantization:
    if name not in list(Quantization):
        raise ConfigError(f"quantization: expected one of {', '.join(Quantization)}, got {name!r}")
    if merged and name != Quantization.FP32:
        raise ConfigError(
            f"a base held in {name} takes no result into its weights: merge in fp32, convert what is saved"
        )
    return Quantization(name)


def _for_anyone(manifest: Manifest) -> Manifest:
    """The run with the base held in all that its method can tune: the run's own choice binds its devices alone."""
    from edge_client.methods import method_of

    possible = method_of(manifest).quantizations
    held = tuple(quantization for quantization in Quantization if quantization in possible)
    return replace(manifest, base=replace(manifest.base, quantizations=held))


def _check_place(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raises unless the base's architecture has a parameter for every dense tensor."""
    from edge_client.model.base_model import meta_backbone

    plain = {name for name, _ in meta_backbone(checkpoint, manifest.task).named_parameters()}
    beyond = next((tensor.name for tensor in manifest.dense if tensor.name not in plain), None)
    if beyond is not None:
        raise ConfigError(
            f"method {manifest.method!r} tuned {beyond!r}, for which {manifest.base.architecture} has no place, so no "
            "plain checkpoint holds it: use load_exported without merged"
        )
