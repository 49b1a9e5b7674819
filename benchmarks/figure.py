"""The frame of every figure: its size, its legend, and a word to whoever has no matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.command_line import BenchmarkError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PLOT_FAULT", "can_plot", "legend_below", "new_figure"]

PLOT_FAULT = "--plot needs matplotlib: pip install 'tributary-fl[bench]'"
"""What to tell somebody who asked for a figure and cannot have it."""


def can_plot() -> bool:
    """Whether matplotlib is installed; it is not imported."""
    return find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; it belongs to no window.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError(PLOT_FAULT) from error
    return Figure(figsize=(width, height), layout="constrained")


def legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    """Explains below all panels what one of them shows."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
