"""Who is invited: a seeded sample without replacement, the same for the same present clients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["choose"]


def choose(present: Sequence[str], count: int, *, seed: int, round_number: int) -> tuple[str, ...]:
    """Draws clients uniformly without replacement.

    Args:
        present: Client keys; their order does not matter.
        count: How many to draw; all, if fewer are present.
        seed: The run's seed.
        round_number: The round, so that each round draws anew.

    Returns:
        The chosen keys, sorted.

    Example:
        >>> choose(["b", "a", "c"], 5, seed=0, round_number=1)
        ('a', 'b', 'c')
    """
    ordered = sorted(present)
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, round_number))))
    order = np.argsort(stream.random(len(ordered)), kind="stable")
    return tuple(sorted(ordered[index] for index in order[:count]))
