"""Who of many devices has something to do, and when: a step costs what happens in it, however many there are."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

__all__ = ["Agenda"]


class Agenda:
    """Devices by number, each called at once, planned for a time, or neither.

    Example:
        >>> agenda = Agenda()
        >>> agenda.plan(7, 2.5)
        >>> agenda.call(3)
        >>> list(agenda.turns(0.0)), agenda.next_event(), list(agenda.turns(2.5))
        ([3], 2.5, [7])
    """

    def __init__(self) -> None:
        self._called: list[int] = []
        """A heap, of which ``_waiting`` is the set."""
        self._waiting: set[int] = set()
        self._times: list[tuple[float, int]] = []
        """A heap, in which what was planned anew since stays until its time."""
        self._planned: dict[int, float] = {}

    @property
    def idle(self) -> bool:
        """Whether nobody is called."""
        return not self._waiting

    def call(self, device: int) -> None:
        """There is something to do for it now."""
        if device not in self._waiting:
            self._waiting.add(device)
            heapq.heappush(self._called, device)

    def plan(self, device: int, at: float | None) -> None:
        """When it is called next, seconds; None: not before somebody calls it. What was planned before is forgotten."""
        if at is None:
            self._planned.pop(device, None)
        elif self._planned.get(device) != at:
            self._planned[device] = at
            heapq.heappush(self._times, (at, device))

    def turns(self, now: float) -> Iterator[int]:
        """All that are called, or whose time has come, in ascending order.

        Who is called meanwhile has its turn if it comes behind the one at work, else in the next pass.
        """
        while self._times and self._times[0][0] <= now:
            at, device = heapq.heappop(self._times)
            if self._planned.get(device) == at:
                del self._planned[device]
                self.call(device)
        latest, passed = -1, []
        while self._called:
            device = heapq.heappop(self._called)
            if device <= latest:
                passed.append(device)
                continue
            latest = device
            self._waiting.discard(device)
            yield device
        self._called = passed

    def next_event(self) -> float | None:
        """The first time that somebody is planned for; None: nobody is."""
        while self._times and self._planned.get(self._times[0][1]) != self._times[0][0]:
            heapq.heappop(self._times)
        return self._times[0][0] if self._times else None
