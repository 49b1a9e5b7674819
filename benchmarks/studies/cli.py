"""Makes a study's command, without loading what only a running study needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.command_line import Planned
from benchmarks.grid.command import grid_command
from benchmarks.grid.settings import GridSettings
from benchmarks.studies.design import Study

__all__ = ["study_command"]


def study_command(study: Study) -> Callable[..., Planned]:
    """The function that :mod:`benchmarks.command_line` calls with what was typed."""

    def run(settings: GridSettings) -> None:
        from benchmarks.studies.command import run_study

        run_study(study, settings)

    base = "a small ViT, which is pretrained first and kept beside the cells," if study.vision else "all-MiniLM-L6-v2"
    return grid_command(
        study.question,
        read=partial(GridSettings.read, study.presets),
        run=run,
        presets=f"{', '.join(study.presets)}: from minutes to what wants a GPU.",
        tasks=", ".join(sorted({task for preset in study.presets.values() for task in preset.tasks})),
        base=f"{base} if left out",
        figure=f"{study.name}.png",
    )
