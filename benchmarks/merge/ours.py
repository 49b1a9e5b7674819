"""Our own merge of a stored case; apart from the others, so that what they import is not counted as its memory."""

from __future__ import annotations

from pathlib import Path

from aggregator.merge import MergedModule, Scratch, merge_module
from benchmarks.merge.cohorts import StoredCase

__all__ = ["merge_ours"]


def merge_ours(stored: StoredCase, scratch: Path) -> MergedModule:
    """The exact merge, from the files to the next state and its leading triplets."""
    cohort = stored.cohort()
    return merge_module(
        stored.base,
        stored.handed,
        cohort.shares(stored.module),
        width=cohort.width(stored.module),
        scratch=Scratch(scratch),
    )
