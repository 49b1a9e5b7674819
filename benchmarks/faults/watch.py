"""Looks at a run while it goes on: what everybody does, how far the rounds are, and a link to every object written."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aggregator.store.home import Home
from benchmarks.faults.device import DeviceSpec
from benchmarks.faults.evidence import AGGREGATOR, Step
from benchmarks.faults.phases import MERGING, Doing, Watched, serving
from benchmarks.faults.records import RecordReader

__all__ = ["Watch"]

_STEP = re.compile(r"round=(\d+) phase=(\w+) version=(\d+)")


class Watch:
    """What is known of a run.

    Args:
        home: The aggregator's.
        log: The aggregator's log.
        specs: The devices.
        kept: Folder to link objects into, so that they stay even if the aggregator drops them.

    Attributes:
        steps: What the aggregator's log said of its rounds.
    """

    def __init__(self, home: Home, log: Path, specs: Sequence[DeviceSpec], kept: Path) -> None:
        self._home, self._log, self._kept = home, log, kept
        self._log_read = 0
        self._readers = {spec.name: RecordReader(Path(spec.record)) for spec in specs}
        self._devices = {spec.name: Watched() for spec in specs}
        self.steps: list[Step] = []

    def look(self) -> None:
        """Takes in what is new; an object that lives shorter than the time between two looks is missed."""
        self._keep_objects()
        self._read_log()
        for name, reader in self._readers.items():
            self._devices[name].feed(reader.new())

    def busy(self, name: str) -> bool:
        """Whether a process is at something that a kill can interrupt."""
        if name != AGGREGATOR:
            return self._devices[name].busy
        merging = bool(self.steps) and self.steps[-1].phase == MERGING
        return merging or serving(self._devices.values()) is not Doing.WAITING

    @property
    def version(self) -> int:
        """The latest version that the aggregator's log speaks of."""
        return max((step.version for step in self.steps), default=0)

    def _keep_objects(self) -> None:
        for path in self._home.objects.glob("objects/??/*"):
            kept = self._kept / "objects" / path.parent.name / path.name
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # dropped at this very moment
                    kept.hardlink_to(path)

    def _read_log(self) -> None:
        with self._log.open("rb") as log:
            log.seek(self._log_read)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._log_read += len(whole)
        for found in _STEP.finditer(whole.decode(errors="replace")):
            number, phase, version = found.groups()
            self.steps.append(Step(at=time.monotonic(), round=int(number), phase=phase, version=int(version)))
