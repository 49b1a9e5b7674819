"""Makes the command of a grid: its flags, checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from benchmarks.command_line import Planned
from benchmarks.grid.settings import GridSettings

__all__ = ["grid_command"]

S = TypeVar("S", bound=GridSettings)


def grid_command(
    question: str,
    *,
    read: Callable[..., S],
    run: Callable[[S], None],
    presets: str,
    tasks: str,
    base: str,
    figure: str,
) -> Callable[..., Planned]:
    """The function that :mod:`benchmarks.command_line` calls with what was typed.

    Args:
        question: What the grid answers; its help begins with it.
        read: Checks the flags, as :meth:`~benchmarks.grid.settings.GridSettings.read` does.
        run: Runs the grid; it may import what is slow.
        presets: The help on ``--preset``.
        tasks: Names of the tasks, for the help on ``--data``.
        base: What it may be, for the help on ``--model``.
        figure: An example, for the help on ``--plot``.
    """

    def plan(
        *,
        preset: str = "quick",
        seed: str = "0",
        data: str | None = None,
        model: str | None = None,
        cells: str | None = None,
        workers: str = "1",
        runs: str | None = None,
        out: str | None = None,
        plot: str | None = None,
    ) -> Planned:
        settings = read(
            preset=preset,
            seed=seed,
            data=data,
            model=model,
            cells=cells,
            workers=workers,
            runs=runs,
            out=out,
            plot=plot,
        )
        return Planned(lambda: run(settings))

    plan.__doc__ = f"""{question}

    Args:
        preset: {presets}
        seed: First seed.
        data: Folder with a folder per task ({tasks}); from the hub if left out.
        model: Hub id or folder of the base model; {base}.
        cells: File that finished runs are added to, and that says which need not be run again.
        workers: Processes, one core each; or ray:HOST:PORT, a Ray cluster, or ray, one of this machine.
        runs: Most runs to do now; 0 reports what is stored; all that are missing if left out.
        out: File for the result, as JSON.
        plot: File for a figure, such as {figure}.
    """
    return plan
