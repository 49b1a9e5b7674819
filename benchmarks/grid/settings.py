"""The flags that every grid of runs takes, checked: what to run, from which data and model, where results go."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.flags import absolute, flag_faults, refuse
from benchmarks.grid.workers import Processes, Workers, read_workers

__all__ = ["GridSettings"]


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """One call, checked."""

    preset_name: str
    """The grid's own name of how much is done."""
    seed: int
    """First seed."""
    data: Path | None
    """Folder with one folder per task; None: from the hub."""
    model: str | None
    """Hub id or folder of the base model; None: the benchmark's own choice."""
    cells: Path | None
    """Where finished cells are stored, and looked for; None: nowhere."""
    workers: Workers
    """Who runs cells."""
    runs: int | None
    """Most cells to run now; None: all that are missing."""
    out: Path | None
    """Where the result goes as JSON; None: nowhere."""
    plot: Path | None
    """Where the figure goes; None: nowhere."""

    @classmethod
    def read(
        cls,
        presets: Collection[str],
        faults: Sequence[str] = (),
        *,
        preset: str,
        seed: str,
        data: str | None,
        model: str | None,
        cells: str | None,
        workers: str,
        runs: str | None,
        out: str | None,
        plot: str | None,
    ) -> Self:
        """Checks flags as they were typed.

        Args:
            presets: Names of the grid's.
            faults: What else is wrong, a line each.
            preset: Which of them.
            seed: A whole number.
            data: A folder that there is.
            model: Hub id or folder.
            cells: A file.
            workers: As :func:`~benchmarks.grid.workers.read_workers` takes it.
            runs: A whole number.
            out: A file.
            plot: A file.

        Raises:
            UsageError: All that is wrong, in one message.
        """
        files = {"cells": cells, "out": out, "plot": plot}
        faults = [*faults, *flag_faults(presets, preset=preset, seed=seed, files=files, data=data, model=model)]
        who: Workers = Processes(1)
        try:
            who = read_workers(str(workers))
        except ValueError as error:
            faults.append(f"--workers: {error}")
        if runs is not None and not str(runs).isdecimal():
            faults.append(f"--runs: expected a whole number from 0, got {runs!r}")
        if isinstance(data, str) and not Path(data).is_dir():
            faults.append(f"--data: there is no folder {data}; leave it out to fetch the data from the hub")
        refuse(faults)
        return cls(
            preset_name=preset,
            seed=int(seed),
            data=absolute(data),
            model=model,
            cells=absolute(cells),
            workers=who,
            runs=None if runs is None else int(runs),
            out=absolute(out),
            plot=absolute(plot),
        )

    def flags(self) -> dict[str, object]:
        """What to type to get the same result, without folders that only this machine has."""
        return {
            "preset": self.preset_name,
            "seed": self.seed,
            "data": self.data and self.data.name,
            "model": self.model and self.model.rstrip("/").rpartition("/")[2],
        }
