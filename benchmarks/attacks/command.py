"""The command ``python -m benchmarks attack``: from flags to a table, a result file and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.attacks.settings import Settings, read_settings
from benchmarks.command_line import Planned

if TYPE_CHECKING:
    from benchmarks.attacks.experiment import Finding

__all__ = ["plan"]


def plan(
    *,
    preset: str = "quick",
    seed: str = "0",
    task: str = "sst2",
    data: str | None = None,
    model: str | None = None,
    out: str | None = None,
    plot: str | None = None,
) -> Planned:
    """How much of a device's texts does the operator of the aggregator read from what it sends?

    Args:
        preset: tiny (tests), quick (minutes on one core) or full (hours, or a GPU).
        seed: First seed; each draws the rows that are attacked.
        task: agnews, cola or sst2.
        data: Folder with a folder per task; the hub if left out.
        model: Hub id or folder of a BERT; all-MiniLM-L6-v2 from its package if left out.
        out: File for the result, as JSON.
        plot: File for a figure, such as attack.png.
    """
    settings = read_settings(preset=preset, seed=seed, task=task, data=data, model=model, out=out, plot=plot)
    return Planned(lambda: _run(settings))


def _run(settings: Settings) -> None:
    from benchmarks.attacks.experiment import run_all
    from benchmarks.attacks.plot import plot_findings
    from benchmarks.attacks.report import claims, measurements, rows, table
    from benchmarks.conclusion import conclude
    from benchmarks.grid import one_thread
    from benchmarks.models import model_or_minilm
    from benchmarks.stages import Stages

    stages, model = Stages(), model_or_minilm(settings.model)
    with one_thread():
        findings: list[Finding] = list(run_all(settings, model, stages.say))
    stages.say("done")
    print(f"\n{table(findings)}\n")
    print(*claims(findings), sep="\n")
    if settings.plot is not None:
        plot_findings(findings, settings.plot)
        print(f"wrote {settings.plot}")
    conclude(
        "attack",
        {
            "preset": settings.preset_name,
            "seed": settings.seed,
            "task": settings.task,
            "data": settings.data and settings.data.name,
            "model": settings.model and Path(settings.model).name,
        },
        settings.seeds,
        measurements(findings),
        rows(findings),
        settings.out,
        packages=("torch", "transformers", "peft", "numpy"),
    )
