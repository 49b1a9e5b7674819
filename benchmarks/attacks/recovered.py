"""What an attack says was in a batch, and how right it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

__all__ = ["Recovered", "TokenScores", "score", "words_of"]


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What an attack found."""

    tokens: Counter[int]
    """Token ids, as often as the attack says."""
    placed: frozenset[tuple[int, int]] | None = None
    """Positions, from 0, and the tokens that it says some text has there; None: it says nothing of places."""


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """How right it is; special tokens, which everybody knows, do not count."""

    precision: float
    """Share of the recovered tokens that were in the batch; 0 where nothing was recovered."""
    recall: float
    """Share of the batch's tokens that were recovered, repetitions included."""
    f1: float
    """Harmonic mean of the two."""
    placed: float | None
    """Share of the batch's pairs of position and token that the attack names; None: it names none."""


def words_of(tokens: Iterable[int], special: Collection[int]) -> Counter[int]:
    """Tokens that are not special, with their numbers."""
    return Counter(token for token in tokens if token not in special)


def score(recovered: Recovered, texts: Collection[Collection[int]], special: Collection[int]) -> TokenScores:
    """Compares what was found with what was there.

    Args:
        recovered: What was found.
        texts: Token ids of each text, in order.
        special: Ids that do not count.

    Example:
        >>> scores = score(Recovered(tokens=Counter([5, 6])), [[2, 5, 7, 5, 6, 3]], {2, 3})
        >>> scores.precision, scores.recall, round(scores.f1, 3)
        (1.0, 0.5, 0.667)
    """
    truth = words_of((token for text in texts for token in text), special)
    found = words_of(recovered.tokens.elements(), special)
    hits = (truth & found).total()
    precision, recall = hits / max(1, found.total()), hits / max(1, truth.total())
    return TokenScores(
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        placed=None if recovered.placed is None else _placed(recovered.placed, texts, special),
    )


def _placed(found: Collection[tuple[int, int]], texts: Collection[Collection[int]], special: Collection[int]) -> float:
    pairs = {(place, token) for text in texts for place, token in enumerate(text) if token not in special}
    return len(pairs & set(found)) / max(1, len(pairs))
