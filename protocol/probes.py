"""Probes: what a device is asked to find out instead of training, and how its answer is told as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from protocol import limits
from protocol.errors import NackCode, RemoteProtocolError

__all__ = ["LAYERS_MAX", "LayerReport", "Probe"]

LAYERS_MAX = limits.METRICS_MAX - 1
"""Layers that a report has room for, beside the share."""
_KEPT = "kept_share"
_SCORE_MAX = 1e12
"""Beyond any true score, which is below 1e5 an example: so that none outweighs all others by itself."""


class Probe(StrEnum):
    """What is asked."""

    LAYER_SCORES = "layer-scores"
    """How much each layer tells a batch's examples apart."""
    KEPT_LAYERS = "kept-layers"
    """The same, and the share of layers that is worth training."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """The answer to either probe.

    Example:
        >>> LayerReport(scores=(2.0, 1.5), kept_share=0.5).metrics
        {'layer.0': 2.0, 'layer.1': 1.5, 'kept_share': 0.5}
    """

    scores: tuple[float, ...]
    """By layer, from the one that is next to the input."""
    kept_share: float | None = None
    """In [0, 1]; None: not asked for."""

    @property
    def metrics(self) -> dict[str, float]:
        """What travels."""
        kept = {} if self.kept_share is None else {_KEPT: self.kept_share}
        return {f"layer.{layer}": score for layer, score in enumerate(self.scores)} | kept

    @classmethod
    def of_metrics(cls, probe: Probe, layers: int, metrics: Mapping[str, float]) -> Self:
        """What a device told.

        Args:
            probe: What it was asked.
            layers: Layers of the model, at least.
            metrics: Finite numbers by name.

        Raises:
            RemoteProtocolError: A number is missing, too many, or out of range; names it.
        """
        left: dict[str, float] = dict(metrics)
        scores: list[float] = []
        while (name := f"layer.{len(scores)}") in left:
            scores.append(left.pop(name))
        kept = left.pop(_KEPT, None) if probe is Probe.KEPT_LAYERS else None
        if left:
            raise _wrong(probe, f"{min(left)[:80]!r} has no place in it")
        if len(scores) < layers:
            raise _wrong(probe, f"expected scores of {layers} layers, got {len(scores)}")
        beyond = [score for score in scores if abs(score) > _SCORE_MAX]
        if beyond:
            raise _wrong(probe, f"score {beyond[0]:g} is beyond {_SCORE_MAX:g}")
        if probe is Probe.KEPT_LAYERS and kept is None:
            raise _wrong(probe, f"{_KEPT} is missing")
        if kept is not None and not 0.0 <= kept <= 1.0:
            raise _wrong(probe, f"{_KEPT} is {kept:g}, expected 0..1")
        return cls(scores=tuple(scores), kept_share=kept)


def _wrong(probe: Probe, what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"a report of {probe}: {what}", NackCode.SHAPE)
