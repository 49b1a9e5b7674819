"""One federation of a study: selected on validation rows, tested once, on rows that nothing was chosen by.

All studies report by one protocol: the global model, scored by the server; the version that scores best on the
validation rows is the one that is tested. Bytes are those that the simulated devices sent and received, frames and all.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator.config import RunConfig
from aggregator.merge import GlobalState
from benchmarks.grid import Record
from benchmarks.scoring import Scorer
from benchmarks.simulation import Committed, Device, SimulatedRun
from edge_client.trainers.resident_base import SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.manifest import Manifest

__all__ = ["Federated", "run_federated", "tuned_values"]

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True, kw_only=True)
class Federated:
    """What to run."""

    manifest: Manifest
    """What is tuned, and how."""
    config: RunConfig
    """How the rounds go."""
    base: SharedBase
    """The base model, which all devices and the scoring share."""
    parts: Sequence[Rows]
    """Rows of each device."""
    ranks: Sequence[int]
    """Rank of each device; whatever, where nothing of the manifest has one."""
    validation: Rows
    """Rows that a version is chosen by."""
    test: Rows
    """Rows that the chosen version is tested on."""
    metric: str
    """What a version is chosen by, higher being better."""
    score_every: int = 1
    """Rounds from one score to the next."""
    devices: Sequence[Device] | None = None
    """How fast each device is, and when it is there; None: all are there, and nothing takes any time."""


def run_federated(given: Federated) -> Record:
    """Runs a federation.

    Returns:
        ``curve``, a point every few rounds with the validation scores, the traffic and the virtual seconds so far;
        ``best``, the chosen version's round with its validation and test scores; ``last``, the last version's;
        ``tuned``, values that the highest rank trains; ``bytes_up`` and ``bytes_down`` of all devices together;
        ``update_bytes``, the largest update; ``cpu_s``.

        Where training is private, ``epsilon``, the largest of any device, and its ``delta``.

    Raises:
        RuntimeError: Training diverged on a device.
    """
    start = time.process_time()
    watch = _Watch(given)
    trainers = [
        TorchTrainer.sharing(given.base, rows, rank=rank) for rows, rank in zip(given.parts, given.ranks, strict=True)
    ]
    with (
        tempfile.TemporaryDirectory(prefix="tributary-") as folder,
        SimulatedRun(
            Path(folder),
            given.config,
            given.manifest,
            trainers,
            seed=given.config.seed,
            devices=given.devices,
        ) as run,
    ):
        run.until_finished(lambda committed: watch.see(committed, run.clock()))
        traffic = run.traffic
        updates = [row for number in range(1, given.config.rounds + 1) for row in run.journal.uploads(number)]
        tested = watch.tested()
    return {
        "curve": watch.curve,
        **tested,
        "tuned": tuned_values(given.manifest, max(given.ranks)),
        "bytes_up": traffic.sent,
        "bytes_down": traffic.received,
        "update_bytes": max(row.size for row in updates),
        **_privacy([json.loads(row.metrics_json) for row in updates]),
        "cpu_s": round(time.process_time() - start, 2),
    }


def _privacy(metrics: Sequence[Mapping[str, float]]) -> Record:
    """What the device that paid most had paid in the end, of all that devices told."""
    spent = max((told for told in metrics if "epsilon" in told), key=lambda told: told["epsilon"], default=None)
    return {} if spent is None else {"epsilon": round(spent["epsilon"], 4), "delta": spent["delta"]}


def tuned_values(manifest: Manifest, rank: int) -> int:
    """How many values a device of this rank trains."""
    active = set(manifest.active(rank))
    dense = sum(tensor.size for tensor in manifest.dense if tensor.name in active)
    return dense + rank * sum(module.out_features + module.in_features for module in manifest.low_rank)


class _Watch:
    """Scores versions as they come, and keeps the best one's state and the last one's."""

    def __init__(self, given: Federated) -> None:
        self._given, self._rank = given, max(given.ranks)
        self._validation = Scorer(given.base, given.manifest, given.validation)
        self._test = Scorer(given.base, given.manifest, given.test)
        self._kept: dict[str, tuple[Record, GlobalState]] = {}
        self.curve: list[Record] = []

    def see(self, committed: Committed, now_s: float) -> None:
        if committed.version % self._given.score_every and committed.version != self._given.config.rounds:
            return
        point = {
            "round": committed.version,
            **self._validation.score(committed.offset, self._rank),
            "bytes_up": committed.traffic.sent,
            "bytes_down": committed.traffic.received,
            "virtual_s": round(now_s, 3),
        }
        self.curve.append(point)
        self._kept["last"] = point, committed.offset
        if "best" not in self._kept or self._value(point) > self._value(self._kept["best"][0]):
            self._kept["best"] = self._kept["last"]

    def tested(self) -> Record:
        return {name: self._scored(*self._kept[name]) for name in ("best", "last")}

    def _scored(self, point: Record, offset: GlobalState) -> Record:
        scores = self._test.score(offset, self._rank)
        return {"round": point["round"], "validation": self._value(point), "test": dict(scores)}

    def _value(self, point: Record) -> float:
        return float(point[self._given.metric])
