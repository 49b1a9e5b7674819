"""The command ``python -m benchmarks merge``: from flags to tables, a result file and a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.command_line import Planned
from benchmarks.merge.settings import Settings, read_settings

if TYPE_CHECKING:
    from benchmarks.merge.experiment import Cell

__all__ = ["plan"]


def plan(*, preset: str = "quick", seed: str = "0", out: str | None = None, plot: str | None = None) -> Planned:
    """How long does a merge of mixed ranks take, and how much memory, beside the published ways to do it?

    Args:
        preset: quick (minutes; modules of 768 and 1,024), full (hours, with 4,096 and Llama-7B's layer) or tiny.
        seed: Seed of models and cohorts.
        out: File for the result, as JSON.
        plot: File for a figure, such as merge.png.
    """
    settings = read_settings(preset=preset, seed=seed, out=out, plot=plot)
    return Planned(lambda: _run(settings))


def _run(settings: Settings) -> None:
    from benchmarks.conclusion import conclude
    from benchmarks.merge.experiment import one_thread, run_case, run_layer, run_memory
    from benchmarks.merge.plot import plot_merges
    from benchmarks.merge.report import layer_lines, measurements, memory_table, rows, time_table
    from benchmarks.stages import Stages

    stages, preset = Stages(), settings.preset
    cells: list[Cell] = []
    with one_thread():
        for number, case in enumerate(preset.cases, 1):
            stages.say(f"case {number}/{len(preset.cases)}: {case.shape}, {case.clients} clients, {case.problem}")
            cells += run_case(case, preset, settings.seed, stages.say)
        stages.say("watching memory")
        memory = list(run_memory(preset, settings.seed))
        layers = []
        for clients in preset.layer_clients:
            stages.say(f"one decoder layer of {clients} clients")
            layers.append(run_layer(preset.layer, clients, preset.slots, settings.seed))
    stages.say("done")
    print(f"\n{time_table(cells)}\n\n{memory_table(memory)}\n", *layer_lines(layers), sep="\n")
    if settings.plot is not None:
        plot_merges(cells, memory, settings.plot)
        print(f"wrote {settings.plot}")
    conclude(
        "merge",
        {"preset": settings.preset_name, "seed": settings.seed},
        (settings.seed,),
        measurements(cells, memory, layers),
        rows(cells, memory, layers),
        settings.out,
        packages=("numpy", "torch", "peft", "threadpoolctl"),
    )
