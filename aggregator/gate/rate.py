"""How often somebody may do something: a bound per name, without a clock of its own."""

from __future__ import annotations

__all__ = ["RateLimit"]

_NAMES_MAX = 100_000


class RateLimit:
    """A token bucket per name (Turner, 1986): bursts up to ``count``, ``count / per_s`` a second on average.

    Args:
        count: Size of a bucket.
        per_s: Seconds in which an empty bucket fills up.

    Example:
        >>> limit = RateLimit(2, per_s=60.0)
        >>> [limit.allows("a", now) for now in (0.0, 0.0, 0.0, 30.0)], limit.allows("b", 0.0)
        ([True, True, False, True], True)
    """

    def __init__(self, count: int, per_s: float) -> None:
        self._count, self._rate = count, count / per_s
        self._buckets: dict[str, tuple[float, float]] = {}

    def allows(self, name: str, now: float) -> bool:
        """Whether it may happen once more at ``now``, in seconds on any monotonic clock; if so, it counts."""
        level, since = self._buckets.get(name, (float(self._count), now))
        level = min(self._count, level + (now - since) * self._rate)
        if name not in self._buckets and len(self._buckets) >= _NAMES_MAX:
            self._forget_full(now)
        allowed = level >= 1.0 and (name in self._buckets or len(self._buckets) < _NAMES_MAX)
        if allowed or name in self._buckets:
            self._buckets[name] = (level - allowed, now)
        return allowed

    def _forget_full(self, now: float) -> None:
        """A bucket that is full again says nothing."""
        self._buckets = {
            name: (level, since)
            for name, (level, since) in self._buckets.items()
            if level + (now - since) * self._rate < self._count
        }
