"""Draws partitions: a bar for each client, stacked by label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data.partitions.skew import LabelSkew
from benchmarks.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_skews"]


def plot_skews(skews: Mapping[str, LabelSkew], path: Path) -> None:
    """Draws one panel for each partition, side by side, on one scale.

    Args:
        skews: By title; of the same labels, at least one.
        path: The figure's file; its suffix says which format.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    figure = new_figure(1.2 + 3.6 * len(skews), 3.8)
    panels = figure.subplots(1, len(skews), sharey=True, squeeze=False)[0]
    for axes, (title, skew) in zip(panels, skews.items(), strict=True):
        _bars(axes, skew)
        distances = f"JS distance: mean {skew.distance_mean:.2f}, max {skew.distance_max:.2f}"
        axes.set_title(f"{title}\n{distances}", fontsize=10)
    panels[0].set_ylabel("rows")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _bars(axes: Axes, skew: LabelSkew) -> None:
    from matplotlib import colormaps

    colors = colormaps["tab10" if len(skew.labels) <= 10 else "tab20"]
    clients, bottom = np.arange(len(skew.counts)), np.zeros(len(skew.counts))
    for index, (label, rows) in enumerate(zip(skew.labels, skew.counts.T, strict=True)):
        axes.bar(clients, rows, bottom=bottom, width=0.9, color=colors(index % colors.N), label=str(label))
        bottom += rows
    axes.set(xlabel="client", xlim=(-0.6, len(clients) - 0.4))
    axes.spines[["top", "right"]].set_visible(False)
