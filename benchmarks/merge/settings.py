"""What the merge benchmark runs with: its flags and its presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from benchmarks.flags import absolute, flag_faults, refuse
from benchmarks.merge.expected import svd_seconds

__all__ = ["LAYER_RANKS", "LLAMA_LAYER", "PRESETS", "RANKS", "Case", "Preset", "Problem", "Settings", "read_settings"]

RANKS: Sequence[int] = (4, 8, 16, 32, 64)
"""Ranks that devices draw from."""
LAYER_RANKS: Sequence[int] = (8, 16, 24)
"""Ranks of the devices that merge a layer: 16 on average."""
LLAMA_LAYER: Sequence[tuple[int, int]] = (*[(4096, 4096)] * 4, *[(11008, 4096)] * 2, (4096, 11008))
"""Linear modules of one of Llama-7B's 32 decoder layers, as (out, in)."""


class Problem(StrEnum):
    """What is merged."""

    ABSOLUTE = "absolute"
    """``Σ p_i B_i A_i``: adapters, without a state before them."""
    DELTA = "delta"
    """``M + Σ p_i D_i``: a round, its hand-out being the best approximation of ``M``."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cell of the table."""

    shape: tuple[int, int]
    """``(m, n)``."""
    clients: int
    """How many devices."""
    problem: Problem
    """What is merged."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is measured."""

    shapes: Sequence[tuple[int, int]]
    """Modules."""
    clients: Sequence[int]
    """Cohorts."""
    repeats: int
    """Times that each contender runs at most; the median counts."""
    slots: int = 64
    """Rank of the hand-out that is wanted of the merge."""
    layer: Sequence[tuple[int, int]] = ()
    """Modules whose merge is timed together."""
    layer_clients: Sequence[int] = ()
    """Cohorts of the layer."""
    memory_shape: tuple[int, int] = (1024, 1024)
    """Module whose merge's memory is watched."""
    memory_clients: Sequence[int] = (10, 100, 1000)
    """Cohorts whose merge's memory is watched."""
    budget_s: float = 45.0
    """A contender runs again while its runs of a case stay within this."""
    patience_s: float = 70.0
    """A competitor that would take longer than this by its operations is left out of a case."""
    svd_once_s: float = 5.0
    """Where a dense decomposition would take longer than this it is timed once for a shape, and added to each sum."""

    @property
    def slow_shapes(self) -> list[tuple[int, int]]:
        """Modules whose dense decomposition is timed once."""
        return [shape for shape in self.shapes if svd_seconds(shape) > self.svd_once_s]

    @property
    def cases(self) -> list[Case]:
        """Every cell."""
        return [
            Case(shape=shape, clients=clients, problem=problem)
            for shape in self.shapes
            for clients in self.clients
            for problem in Problem
        ]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny": Preset(
            shapes=((96, 80),),
            clients=(3, 20),
            repeats=1,
            slots=8,
            memory_shape=(96, 80),
            memory_clients=(2, 4),
            layer=((96, 80), (80, 96)),
            layer_clients=(4,),
            svd_once_s=1e-5,
        ),
        "quick": Preset(shapes=((768, 768), (1024, 1024)), clients=(10, 100), repeats=3),
        "full": Preset(
            shapes=((768, 768), (1024, 1024), (4096, 4096), (14336, 4096)),
            clients=(10, 100, 1000),
            repeats=7,
            layer=LLAMA_LAYER,
            layer_clients=(100, 1000),
            memory_shape=(4096, 4096),
        ),
    }
)
"""``tiny`` tries every path in seconds, ``quick`` takes a minute or two, ``full`` about an hour on one core."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One call, checked."""

    preset_name: str
    """Name in :data:`PRESETS`."""
    seed: int
    """Seed of cohorts and models."""
    out: Path | None
    """Where the result goes as JSON; None: nowhere."""
    plot: Path | None
    """Where the figure goes; None: nowhere."""

    @property
    def preset(self) -> Preset:
        """How much is measured."""
        return PRESETS[self.preset_name]

    @property
    def measured(self) -> Path | None:
        """Where the parts of the result are until it is whole; None: nowhere."""
        return None if self.out is None else self.out.with_name(f"{self.out.name}.measured")


def read_settings(*, preset: str, seed: str, out: str | None, plot: str | None) -> Settings:
    """Checks flags as they were typed.

    Raises:
        UsageError: All that is wrong, in one message.
    """
    refuse(flag_faults(PRESETS, preset=preset, seed=seed, files={"out": out, "plot": plot}))
    return Settings(preset_name=preset, seed=int(seed), out=absolute(out), plot=absolute(plot))
