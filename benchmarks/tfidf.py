"""The baseline without a network: TF-IDF over words, identifiers taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.data.words import words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["tfidf_scores"]


def tfidf_scores(queries: Sequence[str], pool: Sequence[str], *, sublinear: bool = False) -> NDArray[np.float64]:
    """Cosines of TF-IDF vectors fitted on the pool, English stop words out.

    Args:
        queries: ``n`` texts.
        pool: ``m`` texts.
        sublinear: Whether a word that occurs ``k`` times counts ``1 + log k`` instead of ``k``: better on source code,
            which repeats its identifiers.

    Returns:
        ``[n, m]``.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        tokenizer=words, token_pattern=None, lowercase=False, sublinear_tf=sublinear, stop_words="english"
    )
    targets = vectorizer.fit_transform(pool)
    scores: NDArray[np.float64] = (vectorizer.transform(queries) @ targets.T).toarray()
    return scores
