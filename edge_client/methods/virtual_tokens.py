"""Virtual tokens, as prefixes and soft prompts are: what they need of a model, and calls that count them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edge_client.errors import BaseModelError, ConfigError

if TYPE_CHECKING:
    from edge_client.methods.interface import Subject

__all__ = ["body_of", "check_length", "check_subject", "count_in", "install", "named_call"]


_LENGTH_MAX = 4096
"""Virtual tokens: a device makes room for as many as a manifest asks for before it compares their shapes."""


def body_of(backbone: PreTrainedModel) -> PreTrainedModel:
    """The transformer under a model's heads; the model itself where it has none.

    Where that only wraps a decoder, as in OPT, it is the decoder, which heads call directly.
    """
    untyped: Any = backbone
    body: PreTrainedModel = untyped.base_model
    decoder = getattr(body, "decoder", None)
    return decoder if isinstance(decoder, PreTrainedModel) else body


def check_length(method: str, length: object) -> None:
    """Refuses a length that is no number of tokens.

    Raises:
        ConfigError: It is not an integer, or out of bounds.
    """
    if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= _LENGTH_MAX:
        raise ConfigError(f"method {method!r}: length: expected a number of tokens, 1 to {_LENGTH_MAX}, got {length!r}")


def check_subject(method: str, length: int, subject: Subject, argument: str) -> None:
    """Refuses a model that virtual tokens cannot be given to, or that has no positions left for them.

    Args:
        method: Name of the method, for messages.
        length: Virtual tokens.
        subject: What is to be tuned.
        argument: The argument of the model's forward pass that takes them.

    Raises:
        ConfigError: Says why not.
    """
    body, name = body_of(subject.backbone), type(subject.backbone).__name__
    if body.config.is_encoder_decoder:
        raise ConfigError(f"method {method!r}: {name} has an encoder and a decoder: expected one of the two")
    if argument not in inspect.signature(body.forward).parameters:
        raise ConfigError(f"method {method!r}: {name} takes no {argument!r}, which the virtual tokens would go through")
    positions, text = _positions(body), subject.task.max_length
    if positions is not None and length + text > positions:
        raise ConfigError(
            f"method {method!r}: {name} has {positions} positions, a text takes up to {text} of them (max_length) and "
            f"the virtual tokens {length}: lower max_length or length"
        )


def install(backbone: PreTrainedModel, name: str, module: nn.Module) -> None:
    """Makes a module a part of a model, under the name that a manifest gives its tensors.

    Raises:
        BaseModelError: The model has an attribute of that name: another run's tokens, say.
    """
    if hasattr(backbone, name):
        raise BaseModelError(f"{type(backbone).__name__} already has a {name!r}: load the base model anew")
    backbone.add_module(name, module)


def named_call(body: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of a model, by name."""
    return {**dict(zip(inspect.signature(body.forward).parameters, args, strict=False)), **kwargs}


def count_in(call: dict[str, Any], length: int) -> None:
    """Lets a call's attention mask see ``length`` tokens before the text, and moves stated positions behind them."""
    mask: Tensor | None = call.get("attention_mask")
    if mask is not None:
        call["attention_mask"] = torch.cat((mask.new_ones(mask.shape[0], length), mask), dim=1)
    if call.get("position_ids") is not None:
        call["position_ids"] = call["position_ids"] + length


def _positions(body: PreTrainedModel) -> int | None:
    """Tokens that a model has positions for; None: it says none. RoBERTa's kin leave out all up to padding's own."""
    positions = getattr(body.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    padding = (
        module.padding_idx
        for name, module in body.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    )
    index = next(padding, None)
    return positions if index is None else positions - index - 1
