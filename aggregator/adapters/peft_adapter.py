"""A LoRA adapter as a value, and the tensors by which PEFT names it, in a file or in a state dict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from aggregator.adapters.peft_config import PeftConfig, PeftError
from aggregator.merge import Factors

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PeftAdapter", "PeftModule", "adapter_of_tensors", "factor_tensors", "plain_tensors"]


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

    @property
    def kind(self) -> tuple[int, int, bool]:
        """``m``, ``n`` and whether it is an embedding: what adapters of one base have in common."""
        return int(self.B.shape[0]), int(self.A.shape[1]), self.embedding

    def factors(self) -> Factors:
        """``B̂·A`` in float64."""
        return Factors(self.B.astype(np.float64), self.A.astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """What PEFT saves of a LoRA model."""

    modules: Mapping[str, PeftModule]
    """By module path inside the base model."""
    dense: Mapping[str, NDArray[np.float32]]
    """Tensors of ``modules_to_save`` by parameter path inside the base model, values and not differences."""
    base: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Copies of the base's own embeddings, by parameter path. PEFT saves them, unchanged, beside an adapter that tunes
    an embedding, or whose vocabulary was resized."""
    modules_to_save: tuple[str, ...] = ()
    """As in the config: paths, or last parts of paths, of the modules that ``dense`` belongs to."""
    base_model: str | None = None
    """``base_model_name_or_path``."""
    task_type: str | None = None
    """PEFT's task type, such as ``SEQ_CLS``."""
    fan_in_fan_out: bool = False
    """Whether the base keeps its weights transposed (GPT-2's Conv1D). The factors have the same shapes either way."""
    source: str = "the adapter"
    """Where it came from, for messages."""


def adapter_of_tensors(config: PeftConfig, tensors: Mapping[str, NDArray[np.floating]]) -> PeftAdapter:
    """Reads an adapter.

    Args:
        config: What the tensors mean.
        tensors: By the names in ``adapter_model.safetensors``, which are those of ``get_peft_model_state_dict``.

    Raises:
        PeftError: A tensor is not understood, not finite, or not of the rank that the config says.
    """
    factors: dict[str, dict[str, NDArray[np.floating]]] = {}
    rest: dict[str, NDArray[np.float32]] = {}
    for key, value in tensors.items():
        with np.errstate(over="ignore"):
            single = value.astype(np.float32)
        if not np.isfinite(single).all():
            raise PeftError(f"{config.source}: {key!r} holds NaN or values that float32 cannot")
        if match := _FACTOR.fullmatch(key):
            factors.setdefault(match["module"], {})[match["part"]] = value
        else:
            rest[key] = single
    if not tensors:
        raise PeftError(f"{config.source}: expected the tensors of an adapter, got none")
    base = {_base_name(key): value for key, value in rest.items() if _is_base(config, key, factors)}
    return PeftAdapter(
        modules={name: _module(config, name, parts) for name, parts in sorted(factors.items())},
        dense={_dense_name(config, key): rest[key] for key in sorted(rest) if _base_name(key) not in base},
        base=base,
        modules_to_save=config.modules_to_save,
        base_model=config.base_model,
        task_type=config.task_type,
        fan_in_fan_out=config.fan_in_fan_out,
        source=config.source,
    )


def factor_tensors(name: str, module: PeftModule, scaling: float) -> dict[str, NDArray[np.float32]]:
    """The two tensors of one module, by PEFT's names.

    Args:
        name: The module's path.
        module: Its factors.
        scaling: ``s`` of whoever is to read them: ``B = B̂/s``.
    """
    kind, ending = ("lora_embedding_", "") if module.embedding else ("lora_", ".weight")
    return {
        f"{_PREFIX}{name}.{kind}A{ending}": np.ascontiguousarray(module.A, np.float32),
        f"{_PREFIX}{name}.{kind}B{ending}": np.ascontiguousarray(module.B / scaling, np.float32),
    }


def plain_tensors(
    values: Mapping[str, NDArray[np.floating]], wrapped: Iterable[str] = ()
) -> dict[str, NDArray[np.float32]]:
    """Tensors that are no factors, by PEFT's names.

    Args:
        values: By parameter path inside the base model.
        wrapped: Modules that have a LoRA layer around them, which moves their own parameters one level down.
    """
    wrapped, tensors = set(wrapped), {}
    for name, value in values.items():
        module, _, parameter = name.rpartition(".")
        layer = f"{module}.{_WRAPPED}" if module in wrapped else module
        tensors[f"{_PREFIX}{layer}.{parameter}"] = np.ascontiguousarray(value, np.float32)
    return tensors


_PREFIX = "base_model.model."
_WRAPPED = "base_layer"
"""Where a LoRA layer keeps the layer that it wraps."""
_FACTOR = re.compile(
    re.escape(_PREFIX) + r"(?P<module>.+)\.(?P<part>lora_[AB](?=\.weight$)|lora_embedding_[AB]$)(\.weight)?"
)
_EMBEDDINGS = ("embed_tokens", "lm_head")
"""Modules that PEFT saves as they are when it thinks that the vocabulary may have changed
(``peft.utils.constants.EMBEDDING_LAYER_NAMES``)."""


def _is_base(config: PeftConfig, key: str, factors: Mapping[str, object]) -> bool:
    """Whether a tensor is a copy of the base's own, and was not trained."""
    module = key.removeprefix(_PREFIX).rpartition(".")[0]
    if module.endswith(f".{_WRAPPED}"):
        return module.removesuffix(f".{_WRAPPED}") in factors
    return module.rpartition(".")[2] in _EMBEDDINGS and not _saved(config, key)


def _base_name(key: str) -> str:
    return key.removeprefix(_PREFIX).replace(f".{_WRAPPED}.", ".")


def _saved(config: PeftConfig, key: str) -> bool:
    """Whether a tensor is of ``modules_to_save``: PEFT saves every module whose path ends in an entry."""
    parents = key.removeprefix(_PREFIX).split(".")[:-1]
    ancestors = [".".join(parents[:depth]) for depth in range(1, len(parents) + 1)]
    return key.startswith(_PREFIX) and any(path.endswith(e) for path in ancestors for e in config.modules_to_save)


def _dense_name(config: PeftConfig, key: str) -> str:
    if not _saved(config, key):
        raise PeftError(
            f"{config.source}: tensor {key!r} is neither a LoRA factor nor of modules_to_save"
            f" {list(config.modules_to_save)}"
        )
    return key.removeprefix(_PREFIX)


def _module(config: PeftConfig, name: str, parts: dict[str, NDArray[np.floating]]) -> PeftModule:
    embedding = "lora_embedding_A" in parts
    expected = {"lora_embedding_A", "lora_embedding_B"} if embedding else {"lora_A", "lora_B"}
    if parts.keys() != expected:
        raise PeftError(f"{config.source}: module {name!r} has only {sorted(parts)}, expected {sorted(expected)}")
    A, B = (parts[part].astype(np.float64) for part in sorted(expected))
    ranks = config.ranks(name)
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or A.shape[0] not in ranks:
        raise PeftError(
            f"{config.source}: module {name!r}: the config says rank {min(ranks)}, the tensors are B {B.shape} and"
            f" A {A.shape} (convolutions are not supported)"
        )
    return PeftModule(B * config.scaling(name, A.shape[0]), A, embedding)
