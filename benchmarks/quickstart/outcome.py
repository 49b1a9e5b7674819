"""What one seed's run came to: plain values that the report prints and the result file keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.quickstart.evaluation import Score
from benchmarks.quickstart.settings import Device
from benchmarks.quickstart.versions import LayerError

__all__ = ["DeviceOutcome", "SeedOutcome"]


@dataclass(frozen=True, kw_only=True)
class DeviceOutcome:
    """One device."""

    name: str
    """What it owns."""
    device: Device
    """Rank and scaling."""
    num_examples: int
    """Local training examples."""
    received: int
    """Bytes down, counted on its socket."""
    sent: int
    """Bytes up."""
    alone: Score
    """After the same rounds by itself, at its rank."""
    own_rank: Score
    """With the adapter that it holds after the federation, at its rank."""


@dataclass(frozen=True, kw_only=True)
class SeedOutcome:
    """One seed."""

    seed: int
    """Which."""
    seconds: Mapping[str, float]
    """Wall-clock seconds by phase."""
    untrained: Mapping[str, Score]
    """What needs no training, zero-shot last."""
    rounds: Mapping[int, Score]
    """The global adapter at the highest rank by round, for those that were scored, the last one among them."""
    pooled: Score
    """All data on one machine at the highest rank: the ceiling."""
    devices: Sequence[DeviceOutcome]
    """In order of rank."""
    layers: Sequence[LayerError]
    """After the last round."""

    @property
    def federated(self) -> Score:
        """The global adapter in the end."""
        return self.rounds[max(self.rounds)]

    @property
    def rivals(self) -> dict[str, Score]:
        """What the global adapter has to beat, by name."""
        alone = {f"{device.name} alone": device.alone for device in self.devices}
        return {**self.untrained, **alone}
