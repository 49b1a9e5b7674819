"""Reads what a finished run left in the aggregator's home: the adapter of every version, and the merge reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aggregator.store.home import Home
from aggregator.store.journal import Journal
from aggregator.store.objects import ObjectStore
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors, Layout

__all__ = ["FinishedRun", "LayerError", "first_slots", "read_finished_run"]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """What the last merge lost in one module, and what each rank's hand-out leaves out."""

    module: str
    """Name in the base model."""
    merge: float
    """Relative: what was dropped as numerically zero."""
    handout: Mapping[int, float]
    """Rank → ``‖M − T_r‖ / ‖M‖``."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What a run left behind."""

    versions: Sequence[AdapterTensors]
    """The hand-out of every version, as devices received it, at the highest rank; version 0 first."""
    layers: Sequence[LayerError]
    """After the last round, in manifest order."""


def read_finished_run(home: Home, manifest: Manifest) -> FinishedRun:
    """Reads a home whose daemon has ended.

    Args:
        home: The run's.
        manifest: The run's.
    """
    store, layout = ObjectStore(home.objects), Layout.of(manifest)
    with Journal(home.journal) as log:
        rows = log.versions()
        reports = log.reports(rows[-1].round)
    versions = [
        first_slots(layout.decode_body(store.view(row.body_digest), row.slots, row.codec), manifest.rank_max)
        for row in rows
    ]
    return FinishedRun(versions=versions, layers=[_layer(line) for line in map(json.loads, reports) if _low_rank(line)])


def first_slots(adapter: AdapterTensors, rank: int) -> AdapterTensors:
    """The adapter of a lower rank, which is a prefix of that of the higher one."""
    return AdapterTensors(adapter.dense, adapter.slots[:rank])


def _low_rank(line: Mapping[str, object]) -> bool:
    return line["kind"] == "low-rank"


def _layer(line: Mapping[str, object]) -> LayerError:
    errors = line["handout_error"]
    assert isinstance(errors, Mapping)
    return LayerError(
        module=str(line["name"]),
        merge=float(str(line["merge_error"])),
        handout={int(rank): float(error) for rank, error in errors.items()},
    )
