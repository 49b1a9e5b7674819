"""The command ``python -m benchmarks collapse``: from flags to a table, a result file and a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.collapse.settings import Settings, read_settings
from benchmarks.command_line import Planned

if TYPE_CHECKING:
    from benchmarks.collapse.experiment import Course

__all__ = ["plan"]


def plan(*, preset: str = "quick", seed: str = "0", out: str | None = None, plot: str | None = None) -> Planned:
    """Ten clients of ranks 4 to 32 change nothing for ten rounds; what does the merge do to the model?

    Args:
        preset: quick (a module of 128 x 96), full (modules of a MiniLM) or paper (of a BERT-base).
        seed: First seed of the models and cohorts.
        out: File for the result, as JSON.
        plot: File for a figure, such as collapse.png.
    """
    settings = read_settings(preset=preset, seed=seed, out=out, plot=plot)
    return Planned(lambda: _run(settings))


def _run(settings: Settings) -> None:
    from benchmarks.collapse.experiment import run_all
    from benchmarks.collapse.plot import plot_courses
    from benchmarks.collapse.report import measurements, rows, table
    from benchmarks.conclusion import conclude
    from benchmarks.stages import Stages

    stages = Stages()
    courses: list[Course] = []
    for seed in settings.seeds:
        stages.say(f"ten rounds of no-ops under every strategy, seed {seed}")
        courses += run_all(settings.preset.shapes, seed)
    stages.say("done")
    print(f"\n{table(courses)}\n")
    if settings.plot is not None:
        plot_courses(courses, settings.plot)
        print(f"wrote {settings.plot}")
    conclude(
        "collapse",
        {"preset": settings.preset_name, "seed": settings.seed},
        settings.seeds,
        measurements(courses),
        rows(courses),
        settings.out,
        packages=("numpy", "safetensors"),
    )
