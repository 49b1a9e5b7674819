"""The command ``python -m benchmarks hlora``: from flags to tables, a result file and a figure."""

from __future__ import annotations

from benchmarks.grid.command import grid_command
from benchmarks.hlora.settings import Settings, read_settings

__all__ = ["plan"]


def _run(settings: Settings) -> None:
    from tqdm import tqdm

    from benchmarks.conclusion import conclude
    from benchmarks.grid import CellFile, cell_of, title
    from benchmarks.hlora.footprint import footprint_table, measure_footprints
    from benchmarks.hlora.grid import conditions_of, run_grid
    from benchmarks.hlora.plot import plot_grid
    from benchmarks.hlora.report import measurements, rows, tables
    from benchmarks.hlora.settings import Cell, cells_of
    from benchmarks.hlora.workloads import WORKLOADS
    from benchmarks.models import model_or_minilm
    from benchmarks.stages import Stages

    stages, model, stored = Stages(), model_or_minilm(settings.model), CellFile(settings.cells, Cell)
    conditions, cells = conditions_of(settings, model), list(cells_of(settings.preset, settings.seeds))
    missing = stored.missing(cells, conditions)
    stages.say(f"{len(cells)} runs, {len(cells) - len(missing)} of them stored already")
    todo = missing[: settings.runs]
    with tqdm(total=len(todo), unit="run", disable=None) as bar:
        for record in run_grid(settings, todo, model, stored):
            bar.update()
            came = record.get("failure") or f"{record['cpu_s']} s of a core"
            named = title(cell_of(record, Cell))
            if bar.disable:  # nobody watches a terminal
                stages.say(f"{named}: {came}")
            bar.set_postfix_str(named)
    footprints = []
    if settings.preset.footprint_steps:
        stages.say("what a rank costs its device")
        workload = WORKLOADS[settings.preset.tasks[0]]
        footprints = measure_footprints(model, workload, steps=settings.preset.footprint_steps)
    records = stored.records(conditions)
    left = len(stored.missing(cells, conditions))
    print(f"\n{len(cells) - left} of the grid's {len(cells)} runs\n\n{tables(records)}\n")
    if footprints:
        print(f"{footprint_table(footprints)}\n")
    if settings.plot is not None:
        plot_grid(records, settings.plot)
        print(f"wrote {settings.plot}")
    conclude(
        "hlora",
        settings.flags(),
        settings.seeds,
        measurements(records),
        rows(records, footprints),
        settings.out,
        packages=("numpy", "torch", "transformers", "peft"),
    )


plan = grid_command(
    "Twenty devices of ranks 2 to 16 tune one model on real tasks; which way to merge serves them best?",
    read=read_settings,
    run=_run,
    presets="quick (one task, one seed), full (the grid), paper (longer runs), minilm (sentence pairs) or tiny.",
    tasks="sst2, agnews, mrpc, rte, qqp",
    base="a small Llama such as stories260K; of minilm, all-MiniLM-L6-v2 if left out",
    figure="hlora.png",
)
