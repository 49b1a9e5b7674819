"""What a BERT's first layer would be given for any token at any place: what an attacker compares with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from edge_client.training.objectives import Context

__all__ = ["WORD_EMBEDDINGS", "embed_words", "first_inputs", "word_embeddings"]

WORD_EMBEDDINGS = "embeddings.word_embeddings.weight"
"""Name of a BERT's table of words."""


def word_embeddings(context: Context) -> Tensor:
    """``[vocabulary, width]``, without a gradient."""
    backbone: Any = context.model.backbone
    table: Tensor = backbone.get_input_embeddings().weight.detach()
    return table


def embed_words(context: Context, words: Tensor, position: int) -> Tensor:
    """The first layer's input for word vectors at a place, of the first of two texts.

    Args:
        context: The model.
        words: Rows of the table of words, or what stands for such, ``[n, width]``.
        position: From 0, that of ``[CLS]``.

    Returns:
        ``LayerNorm(word + position + type)``, ``[n, width]``.
    """
    embeddings: Any = context.model.backbone.embeddings
    places = torch.full((1, 1), position, device=words.device)
    types = torch.zeros((len(words), 1), dtype=torch.long, device=words.device)
    with torch.no_grad():
        found: Tensor = embeddings(inputs_embeds=words.unsqueeze(1), position_ids=places, token_type_ids=types)
    return found[:, 0]


def first_inputs(context: Context, position: int) -> Tensor:
    """The first layer's input for every token at a place, ``[vocabulary, width]``."""
    return embed_words(context, word_embeddings(context), position)
