"""What the comparison runs with: its flags, its presets, and the cells they come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

from benchmarks.grid.settings import GridSettings
from benchmarks.hlora.arms import ARMS

__all__ = ["PRESETS", "Cell", "Preset", "Settings", "cells_of", "read_settings"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    task: str
    """Name in :data:`~benchmarks.hlora.workloads.WORKLOADS`."""
    alpha: float | None
    """Concentration of the label mixtures; None: all data is on one device."""
    participation: float
    """Share of the devices in a round's cohort."""
    seed: int
    """Decides data, partition, cohorts and order."""
    arm: str
    """Name in :data:`~benchmarks.hlora.arms.ARMS`."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is done."""

    tasks: Sequence[str]
    """Names in :data:`~benchmarks.hlora.workloads.WORKLOADS`."""
    arms: Sequence[str] = tuple(ARMS)
    """Names in :data:`~benchmarks.hlora.arms.ARMS`."""
    alphas: Sequence[float] = (10.0, 1.0, 0.1)
    """Concentrations of the label mixtures, FedNLP's prior-scaled Dirichlet."""
    participations: Sequence[float] = (0.4, 1.0)
    """Shares of the devices in a cohort."""
    seeds: int
    """Repetitions."""
    clients: int = 20
    """Devices."""
    rounds: int
    """Merges."""
    local_steps: int
    """Optimizer steps of a device in a round."""
    train_rows: int = 4000
    """Training rows of all devices together."""
    test_rows: int = 400
    """Rows that every arm is scored on."""
    score_every: int = 5
    """Rounds from one point of a curve to the next."""
    footprint_steps: int = 0
    """Training steps to time at each rank, side by side; 0: none."""
    encoder: bool = False
    """Whether the base is all-MiniLM-L6-v2 unless ``--model`` names another."""
    exact_slots: int = 80
    """Slots that hold the whole global update, or nearly, behind 16 fresh ones: of a residual hand-out, and of the
    server's own score. No layer of stories260K has a rank above 64."""


_ENCODER_ARMS = (
    "delta",
    "delta, residual",
    "hlora",
    "zero-padding",
    "delta, all at rank 16",
    "delta, all at rank 2",
    "centralised, rank 16",
)
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny": Preset(
            tasks=("sst2",),
            arms=("delta", "hlora", "flora", "delta, int8", "delta, all at rank 16", "centralised, rank 16"),
            alphas=(1.0,),
            participations=(0.5,),
            seeds=1,
            clients=4,
            rounds=2,
            local_steps=2,
            train_rows=64,
            test_rows=32,
            score_every=1,
        ),
        "quick": Preset(tasks=("agnews",), alphas=(1.0,), participations=(0.4,), seeds=1, rounds=40, local_steps=2),
        "full": Preset(tasks=("agnews", "sst2"), seeds=5, rounds=40, local_steps=2, footprint_steps=30),
        "paper": Preset(
            tasks=("agnews", "sst2"),
            seeds=5,
            rounds=200,
            local_steps=4,
            train_rows=8000,
            test_rows=1600,
        ),
        "minilm": Preset(
            tasks=("mrpc", "rte", "qqp"),
            arms=_ENCODER_ARMS,
            alphas=(1.0,),
            participations=(0.4,),
            seeds=3,
            rounds=40,
            local_steps=2,
            score_every=10,
            footprint_steps=10,
            encoder=True,
        ),
    }
)
"""``tiny`` is for tests, ``quick`` one column of the grid, ``full`` the grid, ``paper`` the grid with longer runs, and
``minilm`` a pretrained sentence encoder on pairs of sentences."""


class Settings(GridSettings):
    """One call, checked."""

    @property
    def preset(self) -> Preset:
        """How much is done."""
        return PRESETS[self.preset_name]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the repetitions."""
        return tuple(range(self.seed, self.seed + self.preset.seeds))


def cells_of(preset: Preset, seeds: Sequence[int]) -> Iterator[Cell]:
    """All cells, each repetition of all columns before the next, so that what is finished of a grid is whole seeds."""
    federated = [arm for arm in preset.arms if not ARMS[arm].pooled]
    pooled = [arm for arm in preset.arms if ARMS[arm].pooled]
    columns = [(None, pooled), *((alpha, federated) for alpha in preset.alphas)]
    for participation, seed, task, (alpha, arms) in product(preset.participations, seeds, preset.tasks, columns):
        for arm in arms:
            yield Cell(task=task, alpha=alpha, participation=participation, seed=seed, arm=arm)


def read_settings(*, preset: str, model: str | None, **flags: Any) -> Settings:
    """Checks flags as they were typed: those of :meth:`benchmarks.grid.GridSettings.read`.

    Raises:
        UsageError: All that is wrong, in one message.
    """
    faults = []
    if model is None and preset in PRESETS and not PRESETS[preset].encoder:
        faults.append("--model: expected the hub id or folder of a small Llama, such as stories260K")
    return Settings.read(PRESETS, faults, preset=preset, model=model, **flags)
