"""Attack 1, *embedding rows*: where the table of words is trained, only the rows of a batch's words change.

No search and no mathematics: what an operator would do first. Each token is found once, however often it stands there.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from benchmarks.attacks.recovered import Recovered
from benchmarks.attacks.vocabulary import WORD_EMBEDDINGS

if TYPE_CHECKING:
    from benchmarks.attacks.victim import Seen

__all__ = ["read_rows"]


def read_rows(seen: Seen) -> Recovered | None:
    """The tokens whose rows are not zero; None: the method does not train the table of words."""
    table = seen.tensors.get(WORD_EMBEDDINGS)
    if table is None:
        return None
    return Recovered(tokens=Counter(table.abs().amax(1).nonzero().flatten().tolist()))
