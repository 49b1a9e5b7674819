"""Plain PEFT LoRA folders, read and written without torch or peft, and refused with the reason where not understood.

A folder is ``adapter_config.json`` and ``adapter_model.safetensors``. What a module does depends on both: the scaling
``s = α/r`` (``α/√r`` with rsLoRA) stands in the config alone, with per-module patterns. So a config key that this
module does not know must be unset: a wrong scale would merge without a sound.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from safetensors.numpy import save

from aggregator.errors import AggregatorError
from aggregator.merge import Factors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PeftAdapter", "PeftFolderError", "PeftModule", "read_peft_folder", "write_peft_folder"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


class PeftFolderError(AggregatorError):
    """The folder is not a LoRA adapter that can be used here, or cannot be written; the message says why."""


@dataclass(frozen=True)
class PeftModule:
    """One tuned module, free of scale: ``ΔW = B̂·A`` (transposed, for an embedding)."""

    B: NDArray[np.floating]
    """``B̂ = s·B`` ``[m, r]``; float64 as read, so that the scale costs no digit."""
    A: NDArray[np.floating]
    """``[r, n]``."""
    embedding: bool = False
    """Whether it is an embedding table: ``n`` is then the vocabulary."""

    @property
    def rank(self) -> int:
        """``r``."""
        return int(self.A.shape[0])

    def factors(self) -> Factors:
        """``B̂·A`` in float64."""
        return Factors(self.B.astype(np.float64), self.A.astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """What a PEFT LoRA folder holds."""

    modules: Mapping[str, PeftModule]
    """By module path inside the base model."""
    dense: Mapping[str, NDArray[np.float32]]
    """Tensors of ``modules_to_save`` by parameter path inside the base model, values and not differences."""
    modules_to_save: tuple[str, ...] = ()
    """As in the config: paths, or last parts of paths, of the modules that ``dense`` belongs to."""
    base_model: str | None = None
    """``base_model_name_or_path``."""
    task_type: str | None = None
    """PEFT's task type, such as ``SEQ_CLS``."""
    fan_in_fan_out: bool = False
    """Whether the base keeps its weights transposed (GPT-2's Conv1D). The factors have the same shapes either way."""


def read_peft_folder(folder: Path) -> PeftAdapter:
    """Reads an adapter.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors`` (float64, 32, 16 or bfloat16).

    Raises:
        PeftFolderError: A file is missing or broken, the method is not plain LoRA, ``lora_alpha`` is missing, or a
            tensor or setting is not understood.
    """
    config = _read_config(folder / CONFIG_FILE)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    to_save = tuple(config.get("modules_to_save") or ())
    factors: dict[str, dict[str, NDArray[np.float32]]] = {}
    dense = {}
    for key, value in tensors.items():
        match = _FACTOR.fullmatch(key)
        if match:
            factors.setdefault(match["module"], {})[match["part"]] = value
        else:
            dense[_dense_name(folder, key, to_save)] = value
    if not factors and not dense:
        raise PeftFolderError(f"{folder}: {WEIGHTS_FILE} holds no tensor")
    return PeftAdapter(
        modules={name: _module(folder, config, name, parts) for name, parts in sorted(factors.items())},
        dense=dict(sorted(dense.items())),
        modules_to_save=to_save,
        base_model=config.get("base_model_name_or_path"),
        task_type=config.get("task_type"),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
    )


def write_peft_folder(folder: Path, adapter: PeftAdapter, *, overwrite: bool = False) -> None:
    """Writes an adapter that ``peft.PeftModel.from_pretrained`` loads, with ``α = r`` everywhere, so ``s = 1``.

    The folder appears whole or not at all.

    Args:
        folder: Where to; its parents are made.
        adapter: What to write. Values are stored in float32.
        overwrite: Replace a folder that is not empty.

    Raises:
        PeftFolderError: The adapter is empty, or the folder exists, is not empty and ``overwrite`` is off.
    """
    if not adapter.modules:
        raise PeftFolderError(f"{folder}: PEFT has no LoRA adapter without a LoRA module, and this one has none")
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise PeftFolderError(f"{folder} exists and is not an empty folder; choose another, or ask to overwrite it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        fresh.mkdir()
        (fresh / CONFIG_FILE).write_text(json.dumps(_config(adapter), indent=2, sort_keys=True) + "\n")
        (fresh / WEIGHTS_FILE).write_bytes(save(_tensors(adapter), metadata={"format": "pt"}))
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    except OSError as error:
        raise PeftFolderError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


# --- reading ----------------------------------------------------------------------------------------------------------

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    re.escape(_PREFIX) + r"(?P<module>.+)\.(?P<part>lora_[AB](?=\.weight$)|lora_embedding_[AB]$)(\.weight)?"
)

_READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save",
    "base_model_name_or_path", "task_type", "fan_in_fan_out", "bias", "init_lora_weights",
}  # fmt: skip
"""Keys that are read."""
_NEUTRAL = {
    "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "lora_dropout", "megatron_core", "qalora_group_size", "runtime_config",
    "ensure_weight_tying", "eva_config",
}  # fmt: skip
"""Keys that do not change what the tensors mean, whatever their value."""
_NEUTRAL_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to start a LoRA that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change it."""
_REASONS = {
    "use_dora": "DoRA rescales the merged weight, which no sum of products can express",
    "lora_bias": "biases inside LoRA layers are not merged",
    "layer_replication": "the adapter is for a model with replicated layers",
    "trainable_token_indices": "single trained tokens are not merged",
    "target_parameters": "LoRA on bare parameters is not merged",
    "alora_invocation_tokens": "the adapter acts only behind its invocation tokens",
    "use_qalora": "QALoRA pools the input, so its factors do not have the layer's shape",
}


def _read_config(path: Path) -> dict[str, Any]:
    where = path.parent
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise PeftFolderError(f"{where}: no readable {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise PeftFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise PeftFolderError(
            f"{where}: expected peft_type 'LORA', got {got!r}; only plain LoRA has a product to merge"
        )
    faults = list(_config_faults(config))
    if faults:
        raise PeftFolderError(f"{where}: " + "; ".join(faults))
    return config


def _config_faults(config: dict[str, Any]) -> list[str]:
    faults = []
    if not _positive(config.get("lora_alpha")):
        got = config.get("lora_alpha", "nothing")
        faults.append(f"lora_alpha: expected a positive number, got {got!r}; the scale of the adapter is never guessed")
    if not _positive(config.get("r")) or not isinstance(config["r"], int):
        faults.append(f"r: expected a positive whole number, got {config.get('r', 'nothing')!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(_positive(value) for value in pattern.values()):
            faults.append(f"{key}: expected a map to positive numbers, got {pattern!r}")
    to_save = config.get("modules_to_save") or []
    if not isinstance(to_save, list) or not all(isinstance(name, str) for name in to_save):
        faults.append(f"modules_to_save: expected a list of names, got {to_save!r}")
    if config.get("bias") not in (None, "none"):
        faults.append(f"bias={config['bias']!r}: trained biases of the base are not merged")
    start = config.get("init_lora_weights")
    if start not in _NEUTRAL_STARTS:
        faults.append(f"init_lora_weights={start!r} changes the base model; save it as plain LoRA with PEFT first")
    for key in sorted(config.keys() - _READ - _NEUTRAL):
        if config[key]:
            faults.append(f"{key}={config[key]!r}: {_REASONS.get(key, 'a setting that this reader does not know')}")
    return faults


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _read_tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    if not path.exists() and path.with_name("adapter_model.bin").exists():
        raise PeftFolderError(f"{path.parent}: adapter_model.bin is a pickle; save it as safetensors with PEFT first")
    try:
        entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except OSError as error:
        raise PeftFolderError(f"{path.parent}: no readable {path.name}: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise PeftFolderError(f"{path} is not a safetensors file: {error}") from error
    return {name: _values(path, name, entry) for name, entry in entries}


def _values(path: Path, name: str, entry: Mapping[str, Any]) -> NDArray[np.float32]:
    data = bytes(entry["data"])
    if entry["dtype"] == "BF16":  # NumPy has no bfloat16: it is float32's upper half
        values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif entry["dtype"] in _DTYPES:
        with np.errstate(over="ignore"):
            values = np.frombuffer(data, _DTYPES[entry["dtype"]]).astype(np.float32)
    else:
        raise PeftFolderError(f"{path}: {name!r}: expected a float tensor, got {entry['dtype']}")
    if not np.isfinite(values).all():
        raise PeftFolderError(f"{path}: {name!r} holds NaN or values that float32 cannot")
    return values.reshape(entry["shape"])


_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def _dense_name(folder: Path, key: str, to_save: tuple[str, ...]) -> str:
    name = key.removeprefix(_PREFIX)
    parents = name.split(".")[:-1]
    # PEFT saves every module whose path ends in an entry, so the entry is the end of some ancestor's path.
    ancestors = [".".join(parents[:depth]) for depth in range(1, len(parents) + 1)]
    if key.startswith(_PREFIX) and any(path.endswith(entry) for path in ancestors for entry in to_save):
        return name
    raise PeftFolderError(f"{folder}: tensor {key!r} is neither a LoRA factor nor of modules_to_save {list(to_save)}")


def _module(folder: Path, config: dict[str, Any], name: str, parts: dict[str, NDArray[np.float32]]) -> PeftModule:
    embedding = "lora_embedding_A" in parts
    expected = {"lora_embedding_A", "lora_embedding_B"} if embedding else {"lora_A", "lora_B"}
    if parts.keys() != expected:
        raise PeftFolderError(f"{folder}: module {name!r} has only {sorted(parts)}, expected {sorted(expected)}")
    A, B = (parts[part] for part in sorted(expected))
    ranks = _pattern_values(config, "rank_pattern", name, config["r"])
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or A.shape[0] not in ranks:
        raise PeftFolderError(
            f"{folder}: module {name!r}: the config says rank {min(ranks):g}, the tensors are B {B.shape} and"
            f" A {A.shape} (convolutions are not supported)"
        )
    alphas = _pattern_values(config, "alpha_pattern", name, config["lora_alpha"])
    if len(alphas) > 1:
        raise PeftFolderError(
            f"{folder}: module {name!r}: patterns of alpha_pattern contradict each other ({sorted(alphas)}), and PEFT"
            " does not keep their order when it saves; leave the one that was trained with"
        )
    scaling = alphas.pop() / (math.sqrt(A.shape[0]) if config.get("use_rslora") else A.shape[0])
    return PeftModule(B.astype(np.float64) * scaling, A.astype(np.float64), embedding)


def _pattern_values(config: dict[str, Any], key: str, name: str, default: float) -> set[float]:
    """The values of all patterns that match the path's end, from a dot or from its beginning.

    PEFT takes the first, but saves them sorted, so which was the first is lost.
    """
    found = set()
    for pattern, value in (config.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                found.add(float(value))
        except re.error as error:
            raise PeftFolderError(f"{key}: {pattern!r} is not a regular expression: {error}") from error
    return found or {float(default)}


# --- writing ----------------------------------------------------------------------------------------------------------


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
    tensors = {_PREFIX + name: np.ascontiguousarray(value, np.float32) for name, value in adapter.dense.items()}
    for name, module in adapter.modules.items():
        kind, ending = ("lora_embedding_", "") if module.embedding else ("lora_", ".weight")
        tensors[f"{_PREFIX}{name}.{kind}A{ending}"] = np.ascontiguousarray(module.A, np.float32)
        tensors[f"{_PREFIX}{name}.{kind}B{ending}"] = np.ascontiguousarray(module.B, np.float32)
    return tensors
