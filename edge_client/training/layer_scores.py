"""How much each layer of a model tells the examples of a batch apart: FedPepTAO's layer scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from edge_client.data.tasks import Example
    from edge_client.training.objectives import Context

__all__ = ["layer_scores", "similarity_score"]

_DAMPING = 1e-5


def layer_scores(context: Context, examples: Sequence[Example]) -> list[float]:
    """The score of every layer, of the first side of a batch, without a gradient.

    An example's state is that of all its tokens, those of padding being zero: so the length that a batch is padded to
    has no part in it.

    Args:
        context: The model, in evaluation mode, with whatever was handed out on it.
        examples: The batch, at least one.
    """
    batch = context.tensors(examples)
    with torch.no_grad():
        hidden = context.model.backbone(**batch, output_hidden_states=True).hidden_states[1:]
    return [similarity_score(_without_padding(states, batch.get("attention_mask"))) for states in hidden]


def similarity_score(states: Tensor) -> float:
    """``Σ_i log(λ_i + 1e-5) + 1/(λ_i + 1e-5)``, ``λ`` the eigenvalues of the examples' cosine similarities.

    Low where the states of different examples are orthogonal (all ``λ = 1``), high where they are alike.

    Args:
        states: ``[examples, …]``, one state each.

    Reference: Che et al. (FedPepTAO), 2023, arXiv:2310.15080, section 3.2, as in ``llm-eff/FedPepTAO``; after Mellor et
    al., "Neural Architecture Search without Training", 2021, arXiv:2006.04647.
    """
    rows = functional.normalize(states.double().flatten(1), dim=1)
    damped = torch.linalg.eigvalsh(rows @ rows.T).clamp(min=0.0) + _DAMPING
    return float((damped.log() + 1.0 / damped).sum())


def _without_padding(states: Tensor, mask: Tensor | None) -> Tensor:
    """``[examples, tokens, width]``; virtual tokens, which stand before those of the text, have no mask and no part."""
    if mask is None:
        return states
    return states[:, -mask.shape[1] :] * mask.unsqueeze(-1)
