"""Attack 2, *span*: DAGER's test of which tokens' embeddings lie in the row span of the first layer's gradients.

The gradient of a linear layer's weight is ``dYᵀX``: its rows are combinations of the layer's inputs ``X``, one for each
token of the batch. As long as the batch has fewer tokens than the layer has inputs, that span is a true subspace, and
only the embeddings of the batch's own tokens at their places lie in it: all tokens of the vocabulary can be tried, one
by one, without a guess at the others. Of LoRA, ``dA = s·(dY·B)ᵀX`` has the same span as far as its rank reaches: a
module shows nothing while ``B`` is zero, in the first round, and all once the ranks add up to the number of tokens.

What is left out: DAGER's second filter, which puts the tokens together to texts by the second layer's span. So a token
counts once, and where a batch has several texts the places are ambiguous: ``w + p`` is nearly a sum and difference of
``w + q``, ``v + q`` and ``v + p``.

Reference: Petrov et al., "DAGER: Exact Gradient Inversion for Large Language Models", 2024, arXiv:2405.15586, sections
4.1 and 4.2.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from benchmarks.attacks.recovered import Recovered
from benchmarks.attacks.vocabulary import first_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.attacks.victim import Seen

__all__ = ["row_span", "search_span"]

_LAYERS = tuple(f"encoder.layer.0.attention.self.{name}" for name in ("query", "key", "value"))
_RANK_TOLERANCE = 1e-5
"""Singular values below this share of the largest are fp32's rounding, which lies at 1e-7 to 1e-8."""
_DISTANCE_MAX = 5e-3
"""Relative distance to the span up to which an embedding lies in it: true ones come to 1e-3, others begin at 2e-2."""


def search_span(seen: Seen) -> Recovered | None:
    """The tokens whose embeddings lie in the span.

    Nothing is found where the gradients are zero, or span the whole space.

    Returns:
        Tokens, each once, and for each place as many of them as there are texts, the nearest; None: the method trains
        no linear layer that is given the embeddings.
    """
    names = [f"{layer}.{last}" for layer in _LAYERS for last in ("weight", "A")]
    gradients = [seen.tensors[name] for name in names if name in seen.tensors]
    if not gradients:
        return None
    span = row_span(torch.cat(gradients))
    if not 0 < len(span) < span.shape[1]:
        return Recovered(tokens=Counter(), placed=frozenset())
    found: set[int] = set()
    placed: set[tuple[int, int]] = set()
    for place in range(max(seen.lengths)):
        distance = _distances(first_inputs(seen.context, place), span)
        inside = (distance < _DISTANCE_MAX).nonzero().flatten()
        nearest = inside[distance[inside].argsort()[: len(seen.lengths)]]
        found.update(inside.tolist())
        placed.update((place, token) for token in nearest.tolist())
    return Recovered(tokens=Counter(found), placed=frozenset(placed))


def row_span(gradients: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, ``[rank, width]``, of fp32 numbers' numerical rank.

    Args:
        gradients: ``[rows, width]``.
    """
    _, values, rows = torch.linalg.svd(gradients.double(), full_matrices=False)
    kept: Tensor = rows[values > _RANK_TOLERANCE * values[0].clamp(min=torch.finfo(torch.float32).tiny)]
    return kept.float()


def _distances(vectors: Tensor, span: Tensor) -> Tensor:
    """``‖e − Pe‖ / ‖e‖`` of each row ``e``."""
    outside = vectors - (vectors @ span.T) @ span
    distances: Tensor = outside.norm(dim=1) / vectors.norm(dim=1)
    return distances
