"""What a start does with what a crash left: drops orphans, corrects prefixes, and reads back what is still needed."""

from __future__ import annotations

from collections.abc import Iterator

from aggregator.store.journal import Journal, UploadRow
from aggregator.store.objects import ObjectStore
from aggregator.store.rows import RoundPhase, UploadState

__all__ = ["recover_store"]

_STORED = (UploadState.DURABLE, UploadState.MERGED)


def recover_store(journal: Journal, objects: ObjectStore) -> int:
    """Makes the object store agree with the journal. Only for the owner of the home, before anything is served.

    Args:
        journal: Open journal, with at least version 0.
        objects: The object store.

    Returns:
        Files dropped: parts and objects that the journal does not know.

    Raises:
        StoreCorrupt: An object that the run still needs is missing or damaged.
    """
    uploads = list(_uploads(journal))
    receiving = [row for row in uploads if row.state is UploadState.RECEIVING]
    dropped = objects.collect(
        {row.id for row in receiving}
        | {row.sha256 for row in uploads if row.state in _STORED}
        | {digest for row in journal.versions() for digest in (row.state_digest, row.body_digest)}
    )
    for row in receiving:
        if row.have and not objects.has_partial(row.id):
            journal.upload_prefix(row.id, 0)
    latest = journal.versions()[-1]
    for digest in (latest.state_digest, latest.body_digest, *_awaiting_merge(journal)):
        objects.check(digest)
    return dropped


def _uploads(journal: Journal) -> Iterator[UploadRow]:
    for row in journal.rounds():
        yield from journal.uploads(row.number)


def _awaiting_merge(journal: Journal) -> Iterator[str]:
    for row in journal.rounds():
        if row.phase is not RoundPhase.COMMITTED:
            yield from (up.sha256 for up in journal.uploads(row.number) if up.state is UploadState.DURABLE)
