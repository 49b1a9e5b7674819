"""Makes a study's command: its flags, checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.command_line import Planned
from benchmarks.grid.settings import GridSettings
from benchmarks.studies.design import Study

__all__ = ["study_command"]


def study_command(study: Study) -> Callable[..., Planned]:
    """The function that :mod:`benchmarks.command_line` calls with what was typed."""

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
        settings = GridSettings.read(
            study.presets,
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

        def run() -> None:
            from benchmarks.studies.command import run_study

            run_study(study, settings)

        return Planned(run)

    tasks = ", ".join(sorted({task for preset in study.presets.values() for task in preset.tasks}))
    base = "a small ViT, which is pretrained first and kept beside the cells" if study.vision else "all-MiniLM-L6-v2"
    plan.__doc__ = f"""{study.question}

    Args:
        preset: {", ".join(study.presets)}: from minutes to what wants a GPU.
        seed: First seed.
        data: Folder with a folder per task ({tasks}); from the hub if left out.
        model: Hub id or folder of the base model; {base} if left out.
        cells: File that finished runs are added to, and that says which need not be run again.
        workers: Processes, one core each; or ray:HOST:PORT, a Ray cluster, or ray, one of this machine.
        runs: Most runs to do now; 0 reports what is stored; all that are missing if left out.
        out: File for the result, as JSON.
        plot: File for a figure, such as {study.name}.png.
    """
    return plan
