"""Attack 3, *DLG*: word vectors are sought whose gradients match those that came, and named after the nearest tokens.

Known to the attacker: each text's length and label. Sought: one vector per place, from the spread of the table of
words, by Adam on ``Σ‖g' − g‖² / Σ‖g‖²`` over all that the method trains; the table of words itself has no part in it,
since sought vectors do not come from it. As the layers behind the embeddings are given ``LayerNorm(word + position +
type)``, the nearest token is that with the largest cosine there.

Reference: Zhu, Liu, Han, "Deep Leakage from Gradients", 2019, arXiv:1906.08935, algorithm 1 and section 4.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.attacks.recovered import Recovered
from benchmarks.attacks.victim import trained_parameters
from benchmarks.attacks.vocabulary import embed_words, first_inputs, word_embeddings
from edge_client.model.quiet import quiet_forward

if TYPE_CHECKING:
    from benchmarks.attacks.victim import Seen
    from edge_client.training.objectives import Context

__all__ = ["match_gradients"]

_LEARNING_RATE = 0.01
"""Adam's, as in the script that FedPETuning's figures seem to come from."""


def match_gradients(seen: Seen, *, steps: int, seed: int) -> Recovered:
    """Searches, and names what was found.

    Args:
        seen: The gradients.
        steps: Of Adam; 0: what chance finds.
        seed: Draws where the search begins.
    """
    table = word_embeddings(seen.context)
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randn((len(seen.lengths), max(seen.lengths), table.shape[1]), generator=rng)
    words = (drawn.to(table.device) * table.std()).requires_grad_()
    optimizer = torch.optim.Adam([words], lr=_LEARNING_RATE)
    with quiet_forward(), sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        for _ in range(steps):
            words.grad = None
            _mismatch(seen, words).backward(inputs=[words])  # type: ignore[no-untyped-call]
            optimizer.step()
    return _named(seen.context, words.detach(), seen.lengths)


def _mismatch(seen: Seen, words: Tensor) -> Tensor:
    named = {n: p for n, p in trained_parameters(seen.context.model).items() if n in seen.tensors}
    loss = functional.cross_entropy(
        seen.context.model.logits(_batch(words, seen.lengths)), torch.tensor(seen.labels, device=words.device)
    )
    found: Any = torch.autograd.grad(loss, list(named.values()), create_graph=True, allow_unused=True)
    pairs = [(g, seen.tensors[name]) for name, g in zip(named, found, strict=True) if g is not None]
    difference = torch.stack([(g - target).square().sum() for g, target in pairs]).sum()
    return difference / torch.stack([target.square().sum() for _, target in pairs]).sum()


def _batch(words: Tensor, lengths: Sequence[int]) -> dict[str, Tensor]:
    places = torch.arange(words.shape[1], device=words.device)
    mask = (places < torch.tensor(lengths, device=words.device).unsqueeze(1)).long()
    return {"inputs_embeds": words, "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}


def _named(context: Context, words: Tensor, lengths: Sequence[int]) -> Recovered:
    tokens: list[int] = []
    placed: set[tuple[int, int]] = set()
    for place in range(max(lengths)):
        there = [text for text, length in enumerate(lengths) if place < length]
        sought = functional.normalize(embed_words(context, words[there, place], place), dim=1)
        nearest = (sought @ functional.normalize(first_inputs(context, place), dim=1).T).argmax(1).tolist()
        tokens += nearest
        placed.update((place, token) for token in nearest)
    return Recovered(tokens=Counter(tokens), placed=frozenset(placed))
