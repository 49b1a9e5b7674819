"""Where a kill landed: what a device, or the aggregator, was doing at that moment."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Self

from benchmarks.faults.evidence import AGGREGATOR, Evidence, Kill
from benchmarks.faults.records import Record

__all__ = ["MERGING", "Doing", "Watched", "landed_in", "serving"]

MERGING = "merging"
"""The phase of a round in the aggregator's log while its cohort is merged."""


class Doing(StrEnum):
    """What a device does, in the order of a round; the aggregator is named by the furthest of what it is busy with."""

    STARTING = "starting"
    CONNECTING = "connecting"
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    TRAINING = "training"
    STORING = "storing the update"
    UPLOADING = "uploading"
    CHECKING = "update being checked"
    MERGING = "merging"


_AFTER = {
    "dialled": Doing.CONNECTING,
    "welcome": Doing.WAITING,
    "wait": Doing.WAITING,
    "task": Doing.DOWNLOADING,
    "training": Doing.TRAINING,
    "trained": Doing.STORING,
    "offer": Doing.UPLOADING,
    "ack": Doing.WAITING,
    "nack": Doing.WAITING,
}
_IDLE = frozenset({Doing.STARTING, Doing.CONNECTING, Doing.WAITING})
_SERVED = (Doing.CHECKING, Doing.UPLOADING, Doing.DOWNLOADING)
"""What a device does that keeps the aggregator busy, the furthest first."""


class Watched:
    """A device, as its account shows it.

    Attributes:
        doing: What it does now.
    """

    def __init__(self) -> None:
        self.doing = Doing.STARTING
        self._update_bytes = 0

    @property
    def busy(self) -> bool:
        """Whether it does something that a kill can interrupt."""
        return self.doing not in _IDLE

    def feed(self, records: Iterable[Record]) -> Self:
        """Goes on with its account."""
        for record in records:
            self._take(record)
        return self

    def _take(self, record: Record) -> None:
        if record.kind == "started":
            self.doing = Doing.STARTING
        elif self.doing is Doing.TRAINING and record.kind != "trained":
            return  # the link comes and goes meanwhile
        elif record.kind == "chunk":
            complete = record.fields["end"] == self._update_bytes
            self.doing = Doing.CHECKING if complete else Doing.UPLOADING
        else:
            self._update_bytes = record.fields.get("size", self._update_bytes)
            self.doing = _AFTER.get(record.kind, self.doing)


def serving(devices: Iterable[Watched]) -> Doing:
    """What devices keep the aggregator busy with: the furthest of all; ``WAITING`` if nothing."""
    found = {device.doing for device in devices}
    return next((each for each in _SERVED if each in found), Doing.WAITING)


def landed_in(kill: Kill, evidence: Evidence) -> Doing:
    """What a kill interrupted."""
    if kill.starting:
        return Doing.STARTING
    if kill.victim != AGGREGATOR:
        return _at(kill.at, evidence.records[kill.victim]).doing
    step = max((step for step in evidence.steps if step.at <= kill.at), key=lambda step: step.at, default=None)
    if step is not None and step.phase == MERGING:
        return Doing.MERGING
    return serving(_at(kill.at, records) for records in evidence.records.values())


def _at(at: float, records: Sequence[Record]) -> Watched:
    return Watched().feed(records[: bisect_right(records, at, key=lambda record: record.at)])
