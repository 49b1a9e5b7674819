"""The command ``python -m benchmarks hlora``: from flags to tables, a result file and a figure."""

from __future__ import annotations

from benchmarks.command_line import Planned
from benchmarks.hlora.settings import Settings, read_settings

__all__ = ["plan"]


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
    """Twenty devices of ranks 2 to 16 tune one model on real tasks; which way to merge serves them best?

    Args:
        preset: quick (one task, one seed), full (the grid), paper (longer runs), minilm (sentence pairs) or tiny.
        seed: First seed.
        data: Folder with a folder per task (sst2, agnews, mrpc, rte, qqp); from the hub if left out.
        model: Hub id or folder of the base model: a small Llama such as stories260K; of minilm, all-MiniLM-L6-v2.
        cells: File that finished runs are added to, and that says which need not be run again.
        workers: Processes, one core each; or ray:HOST:PORT, a Ray cluster, or ray, one of this machine.
        runs: Most runs to do now; 0 reports what is stored; all that are missing if left out.
        out: File for the result, as JSON.
        plot: File for a figure, such as hlora.png.
    """
    settings = read_settings(
        preset=preset, seed=seed, data=data, model=model, cells=cells, workers=workers, runs=runs, out=out, plot=plot
    )
    return Planned(lambda: _run(settings))


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
