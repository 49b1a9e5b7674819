"""The daemon's own command line with one fault put in: ``python serve.py FAULT HOME FLAGS…``.

Each fault is one that a test for power cuts must notice. The daemon's worker processes run this file again, as
``__mp_main__``: they have the fault, too.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aggregator import cli
from aggregator.intake import updates
from aggregator.intake.updates import Intake
from aggregator.store import objects
from aggregator.store.journal import Journal
from aggregator.store.objects import ObjectStore, Partial
from protocol import messages

_SLOW_DISK_S = 0.05


def no_fsync() -> None:
    """Files and folders are never flushed; the journal still is, by SQLite."""
    os.fsync = os.fdatasync = lambda fd: None


def unflushed_merges() -> None:
    """Uploads are flushed; what a merge makes of them is committed to the journal, but never flushed."""
    Partial.sync = lambda partial: None


def synchronous_normal() -> None:
    """The journal flushes at checkpoints alone: SQLite's usual setting for a WAL."""
    prepare = Journal._prepare

    def prepared(journal: Journal) -> None:
        prepare(journal)
        journal._do("PRAGMA synchronous = NORMAL")

    Journal._prepare = prepared


def rename_before_fsync() -> None:
    """A sealed upload gets its name first, and is flushed second."""
    sync, move_in = objects.sync_file, ObjectStore._move_in

    def moved_in(store: ObjectStore, path: Path, digest: str) -> None:
        move_in(store, path, digest)
        sync(store.path(digest))

    objects.sync_file = lambda path: None
    ObjectStore._move_in = moved_in


def ack_on_arrival() -> None:
    """An update is acknowledged when its last byte is here; checking and flushing it takes a while after that."""
    chunk, verify = Intake.chunk, updates.verify_upload

    def acknowledged(intake: Intake, client: str, message: messages.Chunk, now: float) -> messages.Message:
        return chunk(intake, client, message, now) or messages.Ack(ref=message.upload)

    def slowly(job: Any) -> None:
        time.sleep(_SLOW_DISK_S)
        verify(job)

    Intake.chunk, updates.verify_upload = acknowledged, slowly


FAULTS: dict[str, Callable[[], None]] = {
    fault.__name__.replace("_", "-"): fault
    for fault in (no_fsync, unflushed_merges, synchronous_normal, rename_before_fsync, ack_on_arrival)
}

if __name__ in ("__main__", "__mp_main__"):
    FAULTS[sys.argv[1]]()
if __name__ == "__main__":
    sys.exit(cli.main(["serve", *sys.argv[2:]]))
