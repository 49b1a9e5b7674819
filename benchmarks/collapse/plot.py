"""Draws who shrinks the model: its norm over the rounds, and what is left of each of its directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.collapse.experiment import CASES, Course
from benchmarks.collapse.report import curves
from benchmarks.collapse.settings import PARTICIPATIONS, RANKS, ROUNDS
from benchmarks.figure import legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_courses"]

_UNCHANGED = "#1a7f37"
_COLORS = {"hlora": "#c1272d", "raflora": "#8250a8", "zero-padding": "#d9822b", "hetlora": "#3b5b92"}


def plot_courses(courses: Sequence[Course], path: Path) -> None:
    """Draws the figure.

    Args:
        courses: All of them.
        path: The figure's file; its suffix says which format.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    figure = new_figure(13, 4.6)
    *over_rounds, directions = figure.subplots(1, len(PARTICIPATIONS) + 1)
    for axes, participation in zip(over_rounds, PARTICIPATIONS, strict=True):
        _norms(axes, curves(courses, participation), participation)
    _directions(directions, courses)
    over_rounds[0].set_ylabel("‖M‖ after the round, over ‖M‖ at the start")
    legend_below(figure, over_rounds[0], 3)
    figure.suptitle("Clients that do nothing: what the merge alone does to the model")
    figure.savefig(path, dpi=130)


def _norms(axes: Axes, found: Mapping[str, np.ndarray], participation: float) -> None:
    same = [name for name in CASES if name not in _COLORS]
    axes.plot(found["delta"], color=_UNCHANGED, linewidth=3, label=f"unchanged: {', '.join(same)}")
    for name in same[1:]:
        axes.plot(found[name], color=_UNCHANGED, linewidth=1)
    for name, color in _COLORS.items():
        axes.plot(found[name], "o-", markersize=3, color=color, label=name)
    axes.set(xlabel="round", ylim=(0, 1.04), xlim=(0, ROUNDS))
    axes.set_title(f"{participation:.0%} of the clients in each round", fontsize=10)
    axes.grid(axis="y", color="0.9")


def _directions(axes: Axes, courses: Sequence[Course]) -> None:
    index = np.arange(1, max(RANKS) + 1)
    for name, color in {"delta": _UNCHANGED, **_COLORS}.items():
        found = [c.spectrum for c in courses if (c.strategy, c.participation) == (name, 1.0)]
        axes.plot(index, np.mean(found, axis=0), "o-", markersize=3, color=color)
    for rank in sorted(set(RANKS)):
        axes.axvline(rank + 0.5, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="singular value j (lines: the clients' ranks)", ylim=(0, 1.04))
    axes.set_title(f"σⱼ after {ROUNDS} rounds over σⱼ at the start, 100%", fontsize=10)
    axes.grid(axis="y", color="0.9")
