"""Time that passes only when the simulation says so."""

from __future__ import annotations

__all__ = ["VirtualClock"]


class VirtualClock:
    """A monotonic clock, in seconds from 0.

    Example:
        >>> clock = VirtualClock()
        >>> clock.advance_to(2.5)
        >>> clock()
        2.5
    """

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """The time, seconds."""
        return self._now

    def advance_to(self, time: float) -> None:
        """Lets time pass; never back."""
        self._now = max(self._now, time)
