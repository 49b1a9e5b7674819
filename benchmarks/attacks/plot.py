"""Draws what each attack reads of each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.attacks.experiment import ATTACKS, FREQUENT, ROUNDS, Finding
from benchmarks.attacks.report import PUBLISHED, mean_f1
from benchmarks.figure import legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_findings"]

_COLORS = {"embedding rows": "#c1272d", "span": "#8250a8", "DLG": "#3b5b92"}
_WIDTH = 0.26


def plot_findings(findings: Sequence[Finding], path: Path) -> None:
    """Draws the figure: F1 on gradients, a column for each round, a row for each size of batch.

    Args:
        findings: All of them.
        path: The figure's file; its suffix says which format.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    batches = sorted({finding.batch for finding in findings})
    figure = new_figure(13, 1.2 + 2.6 * len(batches))
    grid = figure.subplots(len(batches), len(ROUNDS), squeeze=False, sharex=True, sharey=True)
    for batch, line in zip(batches, grid, strict=True):
        for number, axes in zip(ROUNDS, line, strict=True):
            _bars(axes, [f for f in findings if f.batch == batch], number, batch)
        line[0].set_ylabel("F1 of tokens")
    legend_below(figure, grid[0][0], 5)
    figure.suptitle("What is read from the gradient of what a method trains (x: the method sends nothing to look at)")
    figure.savefig(path, dpi=130)


def _bars(axes: Axes, findings: Sequence[Finding], number: str, batch: int) -> None:
    arms = list(dict.fromkeys(finding.arm for finding in findings))
    for shift, attack in enumerate(ATTACKS):
        found = [mean_f1(findings, arm=a, round=number, view="gradient", attack=attack) for a in arms]
        at = np.arange(len(arms)) + (shift - 1) * _WIDTH
        axes.bar(at, [value or 0.0 for value in found], _WIDTH, color=_COLORS[attack], label=attack)
        tried = {f.arm for f in findings if (f.attack, f.round, f.view) == (attack, number, "gradient")}
        missing = [place for arm, place, value in zip(arms, at, found, strict=True) if arm in tried and value is None]
        axes.plot(missing, [0.02] * len(missing), "x", color=_COLORS[attack], markersize=4, linestyle="none")
    searched = any((f.attack, f.round) == ("DLG", number) for f in findings)
    published = [PUBLISHED.get(arm, {}).get(batch, np.nan) if searched else np.nan for arm in arms]
    axes.plot(np.arange(len(arms)) + _WIDTH, published, "D", color="0.2", markersize=4, label="DLG as published")
    guess = mean_f1(findings, attack=FREQUENT)
    if guess is not None:
        axes.axhline(guess, color="0.5", linestyle="--", linewidth=1, label=FREQUENT)
    axes.set_xticks(np.arange(len(arms)), arms)
    axes.set_ylim(0, 1.04)
    axes.set_title(f"{number} round, {batch} text{'s' if batch > 1 else ''} a batch", fontsize=10)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
