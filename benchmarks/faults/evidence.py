"""What a run under fire left: the plan's effect, the devices' own accounts, the journal, and every object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator.config import RunConfig
from aggregator.store.home import Home, HomeLock
from aggregator.store.journal import AssignmentRow, Journal, UploadRow, VersionRow
from aggregator.store.objects import ObjectStore
from benchmarks.faults.device import DeviceSpec
from benchmarks.faults.link import Carried
from benchmarks.faults.records import Record, read_records
from edge_client.storage.keys import load_key
from protocol.manifest import Manifest

__all__ = ["AGGREGATOR", "DEVICES", "Evidence", "JournalRows", "Kill", "Recovery", "Step", "read_evidence"]

AGGREGATOR = "aggregator"
"""The name of the victim that is no device, and its side's."""
DEVICES = "devices"
"""The other side's name."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL."""

    victim: str
    """:data:`AGGREGATOR`, or a device."""
    at: float
    """Monotonic, seconds."""
    starting: bool
    """Whether it was meant to hit a process that starts."""

    @property
    def side(self) -> str:
        """:data:`AGGREGATOR` or :data:`DEVICES`."""
        return AGGREGATOR if self.victim == AGGREGATOR else DEVICES


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A process came up."""

    victim: str
    """Which."""
    at: float
    """When it was ready: monotonic, seconds."""
    seconds: float
    """From its start to its readiness."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The aggregator's log said that its round has gone on."""

    at: float
    """Monotonic, seconds; late by a twentieth of a second at most."""
    round: int
    phase: str
    version: int


@dataclass(frozen=True, kw_only=True)
class JournalRows:
    """The journal in the end."""

    versions: Sequence[VersionRow]
    uploads: Sequence[UploadRow]
    """Of all rounds."""
    assignments: Mapping[str, AssignmentRow]
    """By token."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One run."""

    kills: Sequence[Kill]
    recoveries: Sequence[Recovery]
    steps: Sequence[Step]
    connections: Sequence[Carried]
    """What the link carried, in order."""
    started_at: float
    """Monotonic, seconds."""
    records: Mapping[str, Sequence[Record]]
    """Each device's account."""
    keys: Mapping[str, str]
    """Each device's public key."""
    journal: JournalRows
    config: RunConfig
    manifest: Manifest
    objects: ObjectStore
    """Every object that was ever in the aggregator's store."""


def read_evidence(
    home: Home,
    *,
    kept: Path,
    specs: Sequence[DeviceSpec],
    kills: Sequence[Kill],
    recoveries: Sequence[Recovery],
    steps: Sequence[Step],
    connections: Sequence[Carried],
    started_at: float,
) -> Evidence:
    """Gathers it, once all processes have ended.

    Args:
        home: The aggregator's.
        kept: Store with all objects.
        specs: The devices.
        kills: As they happened.
        recoveries: As they happened.
        steps: As they happened.
        connections: What the link carried.
        started_at: When the run began: monotonic, seconds.
    """
    return Evidence(
        kills=kills,
        recoveries=recoveries,
        steps=steps,
        connections=connections,
        started_at=started_at,
        records={spec.name: read_records(Path(spec.record)) for spec in specs},
        keys={spec.name: load_key(Path(spec.folder) / "device.key").public for spec in specs},
        journal=_journal_rows(home),
        config=home.config(),
        manifest=home.manifest(),
        objects=ObjectStore(kept),
    )


def _journal_rows(home: Home) -> JournalRows:
    with HomeLock(home), Journal(home.journal) as journal:
        numbers = [row.number for row in journal.rounds()]
        return JournalRows(
            versions=journal.versions(),
            uploads=[row for number in numbers for row in journal.uploads(number)],
            assignments={row.token: row for number in numbers for row in journal.assignments(number)},
        )
