"""What the collapse runs with: its flags, its presets, and who takes part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.flags import absolute, flag_faults, refuse

__all__ = ["PARTICIPATIONS", "PRESETS", "RANKS", "ROUNDS", "Preset", "Settings", "read_settings"]

RANKS: Sequence[int] = (4, 4, 8, 8, 8, 16, 16, 16, 32, 32)
"""LoRA rank of each client; all have as many examples."""
ROUNDS = 10
"""Rounds of no-ops."""
PARTICIPATIONS: Sequence[float] = (1.0, 0.4)
"""Share of the clients in a round's cohort."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How large the model is, and how often it is drawn."""

    shapes: Sequence[tuple[int, int]]
    """Modules, rows and columns."""
    repeats: int
    """Seeds."""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "quick": Preset(shapes=((128, 96),), repeats=3),
        "full": Preset(shapes=((384, 384), (1536, 384)), repeats=3),
        "paper": Preset(shapes=((768, 768), (3072, 768)), repeats=5),
    }
)
"""``quick`` is a few seconds on one core, ``full`` (modules of a MiniLM) and ``paper`` (of a BERT-base) minutes."""


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

    @property
    def preset(self) -> Preset:
        """How much is done."""
        return PRESETS[self.preset_name]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the repeats."""
        return tuple(range(self.seed, self.seed + self.preset.repeats))


def read_settings(*, preset: str, seed: str, out: str | None, plot: str | None) -> Settings:
    """Checks flags as they were typed.

    Raises:
        UsageError: All that is wrong, in one message.
    """
    refuse(flag_faults(PRESETS, preset=preset, seed=seed, files={"out": out, "plot": plot}))
    return Settings(preset_name=preset, seed=int(seed), out=absolute(out), plot=absolute(plot))
