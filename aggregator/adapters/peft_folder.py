"""Plain PEFT LoRA folders, ``adapter_config.json`` beside ``adapter_model.safetensors``, without torch or peft."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from safetensors.numpy import save

from aggregator.adapters.peft_adapter import PeftAdapter, adapter_of_tensors, factor_tensors, plain_tensors
from aggregator.adapters.peft_config import PeftError, parse_config
from aggregator.adapters.whole_folder import write_whole_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["read_peft_folder", "write_peft_folder"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def read_peft_folder(folder: Path) -> PeftAdapter:
    """Reads an adapter.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors`` (float64, 32, 16 or bfloat16).

    Raises:
        PeftError: A file is missing or broken, the method is not plain LoRA, ``lora_alpha`` is missing, or a tensor or
            setting is not understood.
    """
    config = parse_config(_read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    adapter = adapter_of_tensors(config, _read_tensors(folder / WEIGHTS_FILE))
    return replace(adapter, source=str(folder))


def write_peft_folder(folder: Path, adapter: PeftAdapter, *, overwrite: bool = False) -> None:
    """Writes an adapter that ``peft.PeftModel.from_pretrained`` loads, with ``α = r`` everywhere, so ``s = 1``.

    The folder appears whole or not at all, and what it replaces is not removed before.

    Args:
        folder: Where to; its parents are made.
        adapter: What to write. Values are stored in float32.
        overwrite: Replace a folder that is not empty.

    Raises:
        PeftError: The adapter is empty.
        AdapterError: The folder exists, is not empty and ``overwrite`` is off; or it cannot be written.
    """
    if not adapter.modules:
        raise PeftError(f"{folder}: PEFT has no LoRA adapter without a LoRA module, and this one has none")
    files = {
        CONFIG_FILE: json.dumps(_config(adapter), indent=2, sort_keys=True).encode() + b"\n",
        WEIGHTS_FILE: save(_tensors(adapter), metadata={"format": "pt"}),
    }
    write_whole_folder(folder, files, overwrite=overwrite)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise PeftError(f"{path.parent}: no readable {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise PeftError(f"{path} is not JSON: {error}") from error


def _read_tensors(path: Path) -> dict[str, NDArray[np.floating]]:
    if not path.exists() and path.with_name("adapter_model.bin").exists():
        raise PeftError(f"{path.parent}: adapter_model.bin is a pickle; save it as safetensors with PEFT first")
    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise PeftError(f"{path.parent}: no readable {path.name}: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise PeftError(f"{path} is not a safetensors file: {error}") from error
    return {name: _values(path, name, entry) for name, entry in entries}


def _values(path: Path, name: str, entry: Mapping[str, Any]) -> NDArray[np.floating]:
    data, shape = bytes(entry["data"]), entry["shape"]
    if entry["dtype"] == "BF16":  # NumPy has no bfloat16: it is float32's upper half
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if entry["dtype"] not in _DTYPES:
        raise PeftError(f"{path}: {name!r}: expected a float tensor, got {entry['dtype']}")
    return np.frombuffer(data, _DTYPES[entry["dtype"]]).reshape(shape)


_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def _config(adapter: PeftAdapter) -> dict[str, Any]:
    rank = max(module.rank for module in adapter.modules.values())
    # PEFT reads patterns as regular expressions on the path's end; `^` ties them to the whole path.
    patterns = {f"^{re.escape(name)}": m.rank for name, m in adapter.modules.items() if m.rank != rank}
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": adapter.base_model,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "target_modules": list(adapter.modules),
        # PEFT takes a target for the end of a path; a module that merely ends like one must not be tuned.
        "exclude_modules": rf"(?!(?:{'|'.join(map(re.escape, adapter.modules))})\Z).*",
        "modules_to_save": list(adapter.modules_to_save) or None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _tensors(adapter: PeftAdapter) -> dict[str, NDArray[np.float32]]:
    tensors = plain_tensors(adapter.dense) | plain_tensors(adapter.base, wrapped=adapter.modules)
    for name, module in adapter.modules.items():
        tensors |= factor_tensors(name, module, scaling=1.0)
    return tensors
