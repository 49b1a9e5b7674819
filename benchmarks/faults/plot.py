"""Draws one run: kills, acknowledgements and versions over time, and how fast the aggregator was back each time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.faults.audit import Findings
from benchmarks.faults.evidence import AGGREGATOR, Evidence
from benchmarks.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_run"]

_KILL, _ACK, _VERSION = "#c1272d", "#1a7f37", "#3b5b92"


def plot_run(evidence: Evidence, findings: Findings, path: Path) -> None:
    """Draws it.

    Args:
        evidence: One run.
        findings: The same run's.
        path: The figure's file; its suffix says which format.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    figure = new_figure(11, 5)
    timeline, recovery = figure.subplots(1, 2, width_ratios=[3, 1])
    _timeline(timeline, evidence)
    _recovery(recovery, findings)
    figure.savefig(path, dpi=130)


def _timeline(axes: Axes, evidence: Evidence) -> None:
    start, lanes = evidence.started_at, [*evidence.records, AGGREGATOR]
    kills = [(kill.at - start, lanes.index(kill.victim)) for kill in evidence.kills]
    acks = [
        (record.at - start, lanes.index(name))
        for name, records in evidence.records.items()
        for record in records
        if record.kind == "ack"
    ]
    for lane in range(len(lanes)):
        axes.axhline(lane, color="0.85", zorder=0)
    axes.plot(*zip(*kills, strict=True), "x", color=_KILL, label="SIGKILL")
    axes.plot(*zip(*acks, strict=True), "o", color=_ACK, markersize=4, label="acknowledgement, as the device saw it")
    for version, at in _first_seen(evidence).items():
        axes.axvline(at - start, color=_VERSION, linewidth=0.8, zorder=0, label="version" if version == 1 else None)
        axes.text(at - start, len(lanes) - 0.45, str(version), color=_VERSION, fontsize=7, ha="center")
    axes.set(xlabel="seconds", ylim=(-0.6, len(lanes) - 0.2), yticks=range(len(lanes)), yticklabels=lanes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
    axes.set_title("One run under fire")


def _recovery(axes: Axes, findings: Findings) -> None:
    for seconds, color, label in (
        (findings.recoveries_s, _VERSION, "start to readiness"),
        (findings.back_at_work_s, _KILL, "death to a device's greeting"),
    ):
        axes.step(
            np.sort(seconds), np.arange(1, len(seconds) + 1) / len(seconds), where="post", color=color, label=label
        )
    axes.set(xlabel="seconds", ylabel="share of the kills", ylim=(0, 1), xlim=(0, None))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    axes.set_title("The aggregator is back")


def _first_seen(evidence: Evidence) -> dict[int, float]:
    """When each version first showed in the aggregator's log."""
    found: dict[int, float] = {}
    for step in evidence.steps:
        if step.version:
            found.setdefault(step.version, step.at)
    return found
