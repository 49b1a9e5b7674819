"""Shows a federation at work: one line when a device has delivered, and on a terminal the steps in between."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from benchmarks.quickstart.processes import Event

__all__ = ["FederationProgress", "Stages"]

_CLEAR = "\r\x1b[K"


class Stages:
    """Prints what is being done, and keeps the time.

    Args:
        clock: Seconds.
        out: Where to print.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, out: TextIO = sys.stdout) -> None:
        self._clock, self._out = clock, out
        self._start = clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def say(self, text: str) -> None:
        """Prints a line with the time since the start."""
        self._out.write(f"[{self.elapsed_s:5.0f} s] {text}\n")
        self._out.flush()


class FederationProgress:
    """Turns the devices' events into lines.

    Args:
        stages: Prints.
        rounds: How many there are.
        ranks: Rank by device.
        terminal: Where steps are shown, in place; None: nowhere.
    """

    def __init__(self, stages: Stages, rounds: int, ranks: Mapping[str, int], terminal: TextIO | None) -> None:
        self._stages, self._rounds, self._ranks, self._terminal = stages, rounds, ranks, terminal
        self._steps: dict[str, str] = {}
        self._losses: dict[str, float] = {}

    def show(self, device: str, event: Event) -> None:
        """Shows one event."""
        if event["kind"] == "step":
            self._steps[device] = f"{device} {event['step']}/{event['steps']}"
            self._losses[device] = float(event["loss"])
            self._draw(f"round {event['round']}/{self._rounds}: {'  '.join(self._steps.values())}")
        elif event["kind"] == "round":
            self._draw("")
            self._stages.say(self._delivered(device, event))
            self._steps.pop(device, None)

    def _delivered(self, device: str, event: Event) -> str:
        what = f"round {event['round']}/{self._rounds}  {device:10} rank {self._ranks[device]:2}"
        if not event["accepted"]:
            return f"{what}  refused: {event['reason']}"
        return f"{what}  loss {self._losses.get(device, float('nan')):.3f}  delivered"

    def _draw(self, text: str) -> None:
        if self._terminal is not None:
            self._terminal.write(_CLEAR + text[:100])
            self._terminal.flush()
