"""The command ``python -m benchmarks faults``: from flags to a verdict, a result file and a figure."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.command_line import BenchmarkError, Planned
from benchmarks.faults.settings import Settings, read_settings

if TYPE_CHECKING:
    from benchmarks.faults.audit import Findings
    from benchmarks.faults.evidence import Evidence
    from benchmarks.stages import Stages

__all__ = ["plan"]


def plan(
    *,
    preset: str = "quick",
    seed: str = "0",
    out: str | None = None,
    plot: str | None = None,
    home: str | None = None,
) -> Planned:
    """A daemon and four devices, real processes all, are killed with SIGKILL at random moments; nothing may get lost.

    Args:
        preset: quick (102 kills of each side, under 4 minutes on 2 cores), full (306) or paper (1,020).
        seed: First seed of the plan of kills.
        out: File for the result, as JSON.
        plot: File for a figure of the first run, such as faults.png.
        home: New folder to keep homes, logs and records in; a temporary one if left out.
    """
    settings = read_settings(preset=preset, seed=seed, out=out, plot=plot, home=home)
    return Planned(lambda: _run(settings))


def _run(settings: Settings) -> None:
    from benchmarks.conclusion import conclude
    from benchmarks.faults.report import measurements, print_findings, rows
    from benchmarks.stages import Stages

    stages, seeds, width = Stages(), settings.seeds, settings.preset.side_by_side
    findings: list[Findings] = []
    for start in range(0, len(seeds), width):
        findings += _run_batch(settings, seeds[start : start + width], stages)
    print()
    print_findings(findings)
    conclude(
        "faults",
        {"preset": settings.preset_name, "seed": settings.seed},
        settings.seeds,
        measurements(findings),
        rows(findings),
        settings.out,
        packages=("numpy", "pyzmq", "msgpack", "safetensors"),
    )


def _run_batch(settings: Settings, seeds: Sequence[int], stages: Stages) -> list[Findings]:
    """Runs a few federations side by side, and looks at what they left."""
    from aggregator.errors import AggregatorError
    from benchmarks.faults.audit import audit
    from benchmarks.faults.ordeal import Ordeal
    from benchmarks.faults.plot import plot_run

    async def all_runs(root: Path) -> list[Evidence]:
        ordeals = [Ordeal(settings.preset, seed, root / f"seed-{seed}", stages.say) for seed in seeds]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ordeal.run()) for ordeal in ordeals]
        return [task.result() for task in tasks]

    with _folder(settings) as root:
        try:
            evidence = asyncio.run(all_runs(root))
        except* BenchmarkError as group:
            raise BenchmarkError(str(group.exceptions[0])) from group
        stages.say("merging every journalled cohort again")
        try:
            findings = [audit(each, seed) for each, seed in zip(evidence, seeds, strict=True)]
        except AggregatorError as error:
            raise BenchmarkError(f"a version cannot be merged again: {error}") from error
        if settings.plot is not None and settings.seed in seeds:
            plot_run(evidence[0], findings[0], settings.plot)
    stages.say("done")
    return findings


@contextmanager
def _folder(settings: Settings) -> Iterator[Path]:
    if settings.home is None:
        with tempfile.TemporaryDirectory(prefix="tributary-faults-") as folder:
            yield Path(folder)
    else:
        settings.home.mkdir(parents=True, exist_ok=True)
        yield settings.home
