"""What of a run's past stays on disk: the objects that the run, a device or an audit may still need.

* **The run** goes on from the live version and the updates of the round under way.
* **A device** is served the live version and nothing older: when a version is committed, the assignments of the
  version before are over, and what was trained on it would be refused. One that was fetching the older hand-out is
  told so, and asks for work again.
* **An audit** recomputes a version from the one before and the updates that were merged into it, and ``export`` may be
  asked for an earlier version. For these the operator says how many versions to keep.

The journal's rows are kept for good: whoever sends an old update again is told what became of it.
"""

from __future__ import annotations

from aggregator.store.journal import Journal
from aggregator.store.rows import UploadState

__all__ = ["needed_objects"]

_NEEDED = frozenset({UploadState.DURABLE, UploadState.MERGED})


def needed_objects(journal: Journal, keep_versions: int | None) -> frozenset[str]:
    """Digests of the objects to keep.

    Args:
        journal: Open journal, with at least version 0.
        keep_versions: Versions before the live one to keep, each with the updates that led from it to the next; None:
            all.
    """
    versions = journal.versions()
    oldest = 0 if keep_versions is None else versions[-1].version - keep_versions
    kept = [row for row in versions if row.version >= oldest]
    rounds = [row.number for row in journal.rounds() if row.version >= oldest]
    updates = [row for number in rounds for row in journal.uploads(number) if row.state in _NEEDED]
    return frozenset(
        {row.state_digest for row in kept} | {row.body_digest for row in kept} | {row.sha256 for row in updates}
    )
