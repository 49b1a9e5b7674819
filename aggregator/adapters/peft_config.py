"""What a PEFT LoRA configuration says of its tensors, and what of it is refused.

The scaling ``s = α/r`` (``α/√r`` with rsLoRA) stands in the configuration alone, with per-module patterns. So a key
that this module does not know must be unset: a wrong scale would merge without a sound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aggregator.errors import AdapterError

__all__ = ["PeftConfig", "PeftError", "parse_config"]

T = TypeVar("T", bound=float)


class PeftError(AdapterError):
    """It is not a LoRA adapter that can be used here, or PEFT has none such; the message says whose and why."""


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The part of PEFT's ``LoraConfig`` that decides what an adapter's tensors mean. Names are PEFT's own."""

    source: str
    """Whose it is, for messages: a file, a node."""
    r: int
    """LoRA rank where no pattern matches."""
    lora_alpha: float
    """α where no pattern matches."""
    use_rslora: bool = False
    """Scaling ``α/√r`` instead of ``α/r``."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Regular expression on the end of a module's path → rank."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Regular expression on the end of a module's path → α."""
    modules_to_save: tuple[str, ...] = ()
    """Paths, or last parts of paths, of modules that are saved as they are."""
    base_model: str | None = None
    """``base_model_name_or_path``."""
    task_type: str | None = None
    """PEFT's task type, such as ``SEQ_CLS``."""
    fan_in_fan_out: bool = False
    """Whether the base keeps its weights transposed, as GPT-2's Conv1D does."""

    def ranks(self, module: str) -> set[int]:
        """Every rank that a module's patterns allow: more than one where they contradict each other."""
        return _matches(self.rank_pattern, module) or {self.r}

    def rank(self, module: str) -> int:
        """A module's rank.

        Raises:
            PeftError: Patterns contradict each other.
        """
        return self._only("rank_pattern", module, self.ranks(module))

    @property
    def rank_max(self) -> int:
        """The highest rank that any module can have."""
        return max(self.r, *self.rank_pattern.values(), 1)

    def scaling(self, module: str, rank: int) -> float:
        """``s`` of a module.

        Args:
            module: Its path.
            rank: Its rank.

        Raises:
            PeftError: Patterns contradict each other.

        Example:
            >>> PeftConfig(source="-", r=4, lora_alpha=8, alpha_pattern={"q": 16}).scaling("layer.q", 4)
            4.0
        """
        alpha = self._only("alpha_pattern", module, _matches(self.alpha_pattern, module) or {self.lora_alpha})
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _only(self, key: str, module: str, values: set[T]) -> T:
        """PEFT takes the first pattern that matches, but saves them sorted, so which was the first is lost."""
        if len(values) > 1:
            raise PeftError(
                f"{self.source}: module {module!r}: patterns of {key} contradict each other ({sorted(values)}), and"
                " PEFT does not keep their order when it saves; leave the one that was trained with"
            )
        return values.pop()


def parse_config(config: object, source: str) -> PeftConfig:
    """Reads a configuration.

    Args:
        config: What ``adapter_config.json`` holds, or ``LoraConfig.to_dict()`` gives.
        source: Whose it is, for messages.

    Raises:
        PeftError: It is not plain LoRA, ``lora_alpha`` is missing, or a setting is not understood; names all faults.
    """
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        got = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise PeftError(f"{source}: expected peft_type 'LORA', got {got!r}; only plain LoRA has a product to merge")
    faults = list(_faults(config))
    if faults:
        raise PeftError(f"{source}: " + "; ".join(faults))
    return PeftConfig(
        source=source,
        r=config["r"],
        lora_alpha=float(config["lora_alpha"]),
        use_rslora=bool(config.get("use_rslora")),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        modules_to_save=tuple(config.get("modules_to_save") or ()),
        base_model=config.get("base_model_name_or_path"),
        task_type=config.get("task_type"),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
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
    "use_bdlora": "block-diagonal factors are not merged",
}


def _faults(config: dict[str, Any]) -> Iterator[str]:
    if not _positive(config.get("lora_alpha")):
        got = config.get("lora_alpha", "nothing")
        yield f"lora_alpha: expected a positive number, got {got!r}; the scale of the adapter is never guessed"
    if not _positive(config.get("r")) or not isinstance(config["r"], int):
        yield f"r: expected a positive whole number, got {config.get('r', 'nothing')!r}"
    yield from _pattern_faults("rank_pattern", config.get("rank_pattern") or {}, int, "whole numbers")
    yield from _pattern_faults("alpha_pattern", config.get("alpha_pattern") or {}, (int, float), "numbers")
    to_save = config.get("modules_to_save") or []
    if not isinstance(to_save, list) or not all(isinstance(name, str) for name in to_save):
        yield f"modules_to_save: expected a list of names, got {to_save!r}"
    if config.get("bias") not in (None, "none"):
        yield f"bias={config['bias']!r}: trained biases of the base are not merged"
    start = config.get("init_lora_weights")
    if start not in _NEUTRAL_STARTS:
        yield f"init_lora_weights={start!r} changes the base model; save it as plain LoRA with PEFT first"
    for key in sorted(config.keys() - _READ - _NEUTRAL):
        if config[key]:
            yield f"{key}={config[key]!r}: {_REASONS.get(key, 'a setting that this reader does not know')}"


def _pattern_faults(key: str, pattern: object, kind: type | tuple[type, ...], what: str) -> Iterator[str]:
    if not isinstance(pattern, dict) or not all(_positive(v) and isinstance(v, kind) for v in pattern.values()):
        yield f"{key}: expected a map to positive {what}, got {pattern!r}"
        return
    for expression in pattern:
        try:
            re.compile(expression)
        except re.error as error:
            yield f"{key}: {expression!r} is not a regular expression: {error}"


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _matches(pattern: Mapping[str, T], module: str) -> set[T]:
    """The values of all patterns that match the path's end, from a dot or from its beginning, as PEFT matches them."""
    return {value for expression, value in pattern.items() if re.match(rf"(.*\.)?({expression})$", module)}
