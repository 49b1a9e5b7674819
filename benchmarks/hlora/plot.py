"""Draws the grid: curves of every strategy for each mixture of labels, and what each rank holds in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.command_line import BenchmarkError
from benchmarks.figure import legend_below, new_figure
from benchmarks.grid import Record
from benchmarks.hlora.arms import ARMS, RANKS
from benchmarks.hlora.report import Setting, finished
from benchmarks.hlora.workloads import WORKLOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_grid"]

_COLORS = {
    "delta": "#1a7f37",
    "delta, residual": "#2fb5a0",
    "delta, decaying step": "#8bbf3f",
    "flora": "#5d4037",
    "ffa": "#c2185b",
    "hlora": "#c1272d",
    "raflora": "#8250a8",
    "zero-padding": "#d9822b",
    "hetlora": "#3b5b92",
}
_REFERENCES = {"delta, all at rank 16": "--", "delta, all at rank 2": ":", "centralised, rank 16": "-."}
"""Federations that need no mixed ranks, in grey."""


def plot_grid(records: Sequence[Record], path: Path) -> None:
    """Draws the figure: a row for each task and participation, a curve for each α, and bars by rank.

    Args:
        records: Finished cells.
        path: The figure's file; its suffix says which format.

    Raises:
        BenchmarkError: matplotlib is not installed, or no cell is finished.
    """
    found = finished(records)
    if not found:
        raise BenchmarkError("--plot: there is nothing to draw, no run is finished")
    lines = sorted({(setting.task, setting.participation) for setting in found})
    alphas = sorted({setting.alpha for setting in found})
    figure = new_figure(4.2 * (len(alphas) + 1), 3.4 * len(lines) + 0.9)
    panels = figure.subplots(len(lines), len(alphas) + 1, squeeze=False)
    for row, (task, participation) in zip(panels, lines, strict=True):
        settings = [Setting(task, participation, alpha) for alpha in alphas]
        for axes, setting in zip(row, settings, strict=False):
            _curves(axes, setting, found.get(setting, {}))
        _bars(row[-1], [found[setting] for setting in settings if setting in found], task)
    legend_below(figure, panels[0][0], 2 * panels.shape[1])
    figure.suptitle(
        "What the highest rank holds over the rounds, and what each rank holds in the end (mean over seeds)"
    )
    figure.savefig(path, dpi=110)


def _curves(axes: Axes, setting: Setting, arms: Mapping[str, Mapping[int, Record]]) -> None:
    metric = WORKLOADS[setting.task].metric
    for arm in ARMS:
        style = {"color": _COLORS[arm]} if arm in _COLORS else {"color": "0.55", "linestyle": _REFERENCES.get(arm)}
        if arm in arms and (arm in _COLORS or arm in _REFERENCES):
            curves = [record["curve"] for record in arms[arm].values()]
            rounds = [point["round"] for point in curves[0]]
            axes.plot(rounds, np.mean([[p[metric] for p in c] for c in curves], axis=0), label=arm, **style)
    axes.set_title(str(setting), fontsize=9)
    axes.set(xlabel="round", ylabel=metric)
    axes.grid(axis="y", color="0.9")


def _bars(axes: Axes, settings: Sequence[Mapping[str, Mapping[int, Record]]], task: str) -> None:
    """Mean over every α."""
    metric, width = WORKLOADS[task].metric, 0.8 / len(_COLORS)
    start, lowest = 1.0, 1.0
    for number, (arm, color) in enumerate(_COLORS.items()):
        found = [record for arms in settings for record in arms.get(arm, {}).values()]
        if found:
            heights = [np.mean([record["ranks"][str(rank)][metric] for record in found]) for rank in RANKS]
            axes.bar(np.arange(len(RANKS)) + number * width - 0.4, heights, width, align="edge", color=color)
            start, lowest = np.mean([r["curve"][0][metric] for r in found]), min(lowest, *heights)
    axes.axhline(start, color="0.4", linewidth=0.8)
    axes.set_xticks(range(len(RANKS)), [f"rank {rank}" for rank in RANKS])
    axes.set_ylim(min(start, lowest) - 0.02, None)
    axes.set_title("by rank, over every α; line: untrained", fontsize=9)
