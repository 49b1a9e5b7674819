"""What the fault run runs with: its flags, its presets, and how hard it is on the processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.flags import absolute, flag_faults, folder_fault, refuse

__all__ = ["PRESETS", "RANKS", "Preset", "Settings", "read_settings"]

RANKS: Sequence[int] = (2, 4, 8, 16)
"""LoRA rank of each device."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is killed, and how large the updates are."""

    runs: int
    """Federations, each with a daemon, devices and a plan of kills of its own."""
    side_by_side: int = 3
    """Runs at a time: while one gets on its feet again, the others keep the machine busy."""
    kills: int = 34
    """Kills of the aggregator, and as many of devices, in one run; those of starting processes come on top."""
    aggregator_life_s: float = 2.0
    """Mean time from the aggregator's readiness to its next kill, which waits besides until it is at work."""
    device_life_s: float = 8.0
    """The same of each device."""
    dense: int = 4_000_000
    """Entries of the dense tensor, 4 bytes each in an update: 15 MiB, while prefixes are journalled every 8 MiB."""
    rate: float = 40e6
    """Bytes per second of a device's link, each way, at most."""
    cut_share: float = 0.25
    """Share of the connections that are cut at a random byte of what the device sends."""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {"quick": Preset(runs=3), "full": Preset(runs=9), "paper": Preset(runs=30)}
)
"""``quick`` is 102 kills of each side, under four minutes on two cores; ``full`` 306 and ``paper`` 1,020."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One call, checked."""

    preset_name: str
    """Name in :data:`PRESETS`."""
    seed: int
    """First seed."""
    out: Path | None
    """Where the result goes as JSON; None: nowhere."""
    plot: Path | None
    """Where the figure goes; None: nowhere."""
    home: Path | None
    """Where homes, logs and records are kept; None: a temporary folder, deleted in the end."""

    @property
    def preset(self) -> Preset:
        """How much is done."""
        return PRESETS[self.preset_name]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(range(self.seed, self.seed + self.preset.runs))


def read_settings(*, preset: str, seed: str, out: str | None, plot: str | None, home: str | None) -> Settings:
    """Checks flags as they were typed.

    Raises:
        UsageError: All that is wrong, in one message.
    """
    faults = flag_faults(PRESETS, preset=preset, seed=seed, files={"out": out, "plot": plot}, home=home)
    faults += folder_fault("home", home)
    refuse(faults)
    return Settings(preset_name=preset, seed=int(seed), out=absolute(out), plot=absolute(plot), home=absolute(home))
