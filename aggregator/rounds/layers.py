"""Which layers a run goes on with: selected once, from what the devices of one round found out about them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from aggregator.merge.weighting import Weighting
from protocol.manifest import layer_of
from protocol.probes import LayerReport, Probe

if TYPE_CHECKING:
    from aggregator.rounds.work import StoredVersion
    from aggregator.store.journal import AnswerRow, Journal

__all__ = ["LayerSelection", "SelectionJob", "select_job", "select_layers", "selected_layers"]

_KIND = "layers"


@dataclass(frozen=True, kw_only=True)
class LayerSelection:
    """The layers that are trained from now on, and why."""

    layers: tuple[int, ...]
    """Ascending."""
    scores: tuple[float, ...]
    """Of all layers of the model, from layer 0."""
    kept_share: float
    """Share of the layers with trainables that was to be kept."""

    def active(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those trainables that are of a selected layer, or of none."""
        return tuple(name for name in names if layer_of(name) in (None, *self.layers))

    def line(self, round_number: int, clients: int) -> str:
        """The report of the round that it was selected in, as a JSON line."""
        told = {"layers": self.layers, "scores": self.scores, "kept_share": self.kept_share}
        return json.dumps({"round": round_number, "clients": clients, "kind": _KIND, **told})

    @classmethod
    def of_line(cls, line: str) -> Self:
        """Reads what :meth:`line` wrote."""
        told = json.loads(line)
        return cls(layers=tuple(told["layers"]), scores=tuple(told["scores"]), kept_share=told["kept_share"])


@dataclass(frozen=True, kw_only=True)
class SelectionJob:
    """Selects layers in place of a merge; the version that follows is the one before. A small picklable value."""

    base: StoredVersion
    """The live version."""
    round: int
    """Its round."""
    answers: tuple[AnswerRow, ...]
    """The cohort's, each checked when it came, by client."""
    candidates: tuple[int, ...]
    """Layers with trainables."""
    kept_layers: float | None
    """Share to keep; None: the devices' own."""
    weighting: Weighting = Weighting.NUM_EXAMPLES
    """By what an answer counts, as updates do: by its examples unless it says that all devices count the same."""


def select_job(job: SelectionJob) -> tuple[StoredVersion, tuple[str, ...]]:
    """The next version, which is as the last one, and the selection as a report."""
    probe = Probe.KEPT_LAYERS if job.kept_layers is None else Probe.LAYER_SCORES
    least = job.candidates[-1] + 1
    alike = job.weighting is Weighting.UNIFORM
    reports = [
        (1 if alike else row.num_examples, LayerReport.of_metrics(probe, least, json.loads(row.metrics_json)))
        for row in job.answers
    ]
    selection = select_layers(reports, job.candidates, job.kept_layers)
    return replace(job.base, version=job.base.version + 1), (selection.line(job.round, len(reports)),)


def select_layers(
    reports: Sequence[tuple[int, LayerReport]], candidates: Sequence[int], kept_layers: float | None
) -> LayerSelection:
    """The layers of highest mean score; of two alike the one nearer to the input.

    Args:
        reports: What each device told, with its weight; at least one.
        candidates: Layers to choose from.
        kept_layers: Share of them to choose, at least one of them; None: the mean of the devices' own shares.

    Reference: Che et al. (FedPepTAO), 2023, arXiv:2310.15080, sections 3.2 and 3.3.
    """
    weights = [weight for weight, _ in reports]
    depth = min(len(report.scores) for _, report in reports)
    scores = np.average([report.scores[:depth] for _, report in reports], axis=0, weights=weights)
    if kept_layers is None:
        kept_layers = float(np.average([report.kept_share or 0.0 for _, report in reports], weights=weights))
    count = max(1, int(kept_layers * len(candidates) + 0.5))
    best = sorted(candidates, key=lambda layer: (-scores[layer], layer))[:count]
    return LayerSelection(layers=tuple(sorted(best)), scores=tuple(map(float, scores)), kept_share=kept_layers)


def selected_layers(journal: Journal, probe_round: int | None) -> LayerSelection | None:
    """What a run has selected; None: nothing yet, or it never will."""
    lines = [] if probe_round is None else journal.reports(probe_round)
    return LayerSelection.of_line(lines[0]) if lines else None
