"""Draws the merge benchmark: seconds by case and contender, and anonymous memory over the size of the cohort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figure import new_figure
from benchmarks.merge.contenders import Contender
from benchmarks.merge.experiment import Cell, MemoryUse

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_merges"]

_COLORS = {
    Contender.OURS: "#1a7f37",
    Contender.NVFLARE: "#3b5b92",
    Contender.DENSE: "#c1272d",
    Contender.PEFT: "#b8860b",
}


def plot_merges(cells: Sequence[Cell], memory: Sequence[MemoryUse], path: Path) -> None:
    """Draws it.

    Args:
        cells: Times.
        memory: Memory, by growing cohort.
        path: The figure's file; its suffix says which format.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    cases = list(dict.fromkeys(cell.case for cell in cells))
    figure = new_figure(12, max(4.0, 2.2 + 0.32 * len(cases)))
    times, growth = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_times(times, cells)
    _draw_memory(growth, memory)
    figure.savefig(path, dpi=130)


def _draw_times(axes: Axes, cells: Sequence[Cell]) -> None:
    cases = list(dict.fromkeys(cell.case for cell in cells))
    for who in Contender:
        found = [(cell.median_s, cases.index(cell.case)) for cell in cells if cell.contender == who]
        if found:
            axes.plot(*zip(*found, strict=True), "o", color=_COLORS[who], label=who.value)
    labels = [f"{c.shape[0]}×{c.shape[1]}, {c.clients}, {c.problem}" for c in cases]
    axes.set(xscale="log", xlabel="seconds, one thread, median", yticks=range(len(cases)), yticklabels=labels)
    axes.grid(axis="both", color="0.9")
    axes.set_axisbelow(True)
    axes.invert_yaxis()
    axes.set_title("One merge: module, clients, form", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False)


def _draw_memory(axes: Axes, memory: Sequence[MemoryUse]) -> None:
    clients = [use.clients for use in memory]
    for label, color, found in (
        ("tributary", _COLORS[Contender.OURS], [use.streamed_bytes / 1e6 for use in memory]),
        ("everything kept", _COLORS[Contender.NVFLARE], [use.kept_bytes / 1e6 for use in memory]),
    ):
        axes.plot(clients, found, "o-", color=color, label=label)
    axes.set(xscale="log", yscale="log", xlabel="clients", ylabel="anonymous memory at its peak, MB")
    axes.grid(color="0.9")
    axes.set_title("Memory of one merge", fontsize=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
