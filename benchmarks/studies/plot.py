"""Draws a study: what each arm scores under each condition, and what it costs on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.command_line import BenchmarkError
from benchmarks.data.tasks import TASKS
from benchmarks.figure import legend_below, new_figure
from benchmarks.grid import Record
from benchmarks.studies.claims import scores_of
from benchmarks.studies.design import Preset, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_study"]


def plot_study(study: Study, preset: Preset, records: Sequence[Record], path: Path) -> None:
    """Draws the figure: a row for each task; left, scores by condition; right, the validation curves by bytes sent.

    Args:
        study: Which.
        preset: How much of it.
        records: Finished cells.
        path: The figure's file; its suffix says which format.

    Raises:
        BenchmarkError: matplotlib is not installed, or no cell is finished.
    """
    whole = [record for record in records if "failure" not in record]
    tasks = [task for task in preset.tasks if any(record["task"] == task for record in whole)]
    if not tasks:
        raise BenchmarkError("--plot: there is nothing to draw, no run is finished")
    arms = [arm for arm in preset.arms or study.arms if any(record["arm"] == arm for record in whole)]
    conditions = list(preset.conditions or study.conditions)
    figure = new_figure(3.5 + 1.3 * len(conditions) + 5, 3.6 * len(tasks) + 0.6)
    panels = figure.subplots(len(tasks), 2, squeeze=False, width_ratios=(1 + 0.35 * len(conditions), 1))
    for (left, right), task in zip(panels, tasks, strict=True):
        of_task = [record for record in whole if record["task"] == task]
        _scores(left, of_task, arms, conditions, task)
        _curves(right, [record for record in of_task if record["condition"] == study.first], arms, task)
        right.set_title(f"{task}: {study.first}, validation rows", fontsize=9)
    legend_below(figure, panels[0][0], len(arms))
    figure.suptitle(f"{study.name}: test scores by condition, and what they cost (mean and range over seeds)")
    figure.savefig(path, dpi=110)


def _scores(axes: Axes, records: Sequence[Record], arms: Sequence[str], conditions: Sequence[str], task: str) -> None:
    """Points, not bars: small differences matter, and a bar that does not begin at zero exaggerates them."""
    for number, arm in enumerate(arms):
        shift = 0.6 * ((number + 0.5) / len(arms) - 0.5)
        found = [(place, list(scores_of(records, arm, name).values())) for place, name in enumerate(conditions)]
        there = [(place + shift, np.mean(scores), min(scores), max(scores)) for place, scores in found if scores]
        if there:
            places, means, lowest, highest = np.array(there).T
            reach = (means - lowest, highest - means)
            axes.errorbar(places, means, reach, fmt="o", color=f"C{number}", markersize=5, linewidth=1.2, label=arm)
    for border in range(1, len(conditions)):
        axes.axvline(border - 0.5, color="0.85", linewidth=0.8)
    axes.set_xlim(-0.5, len(conditions) - 0.5)
    axes.set_xticks(range(len(conditions)), conditions, rotation=25, ha="right", fontsize=8)
    axes.set_ylabel(TASKS[task].metric)
    axes.set_title(f"{task}, test rows", fontsize=9)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def _curves(axes: Axes, records: Sequence[Record], arms: Sequence[str], task: str) -> None:
    metric = TASKS[task].metric
    for number, arm in enumerate(arms):
        curves = [record["curve"] for record in records if record["arm"] == arm and "curve" in record]
        if curves:
            sent = [np.mean([c[i]["bytes_up"] + c[i]["bytes_down"] for c in curves]) for i in range(len(curves[0]))]
            scores = [np.mean([c[i][metric] for c in curves]) for i in range(len(curves[0]))]
            axes.plot(np.array(sent[1:]) / 1e6, scores[1:], color=f"C{number}", marker=".", label=arm)
    axes.set_xscale("log")
    axes.set(xlabel="MB of all devices, both ways", ylabel=metric)
    axes.grid(color="0.9")
