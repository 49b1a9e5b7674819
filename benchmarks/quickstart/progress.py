"""Shows a federation at work: one line when a device has delivered, and on a terminal the steps in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from benchmarks.quickstart.processes import Event
from benchmarks.stages import Stages

__all__ = ["FederationProgress"]

_CLEAR = "\r\x1b[K"


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
