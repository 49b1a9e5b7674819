"""How long to wait and how much to send at once: back-off with full jitter, and the chunk size that fits the link."""

from __future__ import annotations

import random

from protocol import limits

__all__ = ["ChunkSizer", "backoff_s"]

_BASE_S = 1.0
_CAP_S = 120.0
_START_BYTES = 256 << 10
_TARGET_S = 1.0


def backoff_s(attempt: int, rng: random.Random) -> float:
    """Seconds until the next try, ``U(0, min(120, 2^attempt))``.

    Full jitter: after an outage, devices come back spread out, not in step.

    Args:
        attempt: Failed tries so far, from 0.
        rng: Source of the jitter.

    Reference: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return rng.uniform(0.0, min(_CAP_S, _BASE_S * 2.0 ** min(attempt, 32)))


class ChunkSizer:
    """Keeps the size of one chunk such that it takes about a second at most on this link.

    A chunk is the unit of progress that both sides can see: too large, and a slow link looks dead; too small, and a
    fast one is busy with headers.

    Args:
        chunk_max: Largest size the aggregator allows, bytes.

    Example:
        >>> sizer = ChunkSizer(1 << 20)
        >>> sizer.observe(sizer.bytes, 0.01)
        >>> sizer.bytes
        524288
    """

    def __init__(self, chunk_max: int) -> None:
        self._max = chunk_max
        self.bytes = min(_START_BYTES, chunk_max)

    def observe(self, moved: int, seconds: float) -> None:
        """Takes note that ``moved`` bytes took ``seconds`` to move."""
        rate = moved / max(seconds, 1e-6)
        if self.bytes > rate * _TARGET_S:
            self.bytes = max(limits.CHUNK_MIN_BYTES, self.bytes // 2)
        elif 2 * self.bytes <= rate * _TARGET_S:
            self.bytes = min(self._max, self.bytes * 2)
