"""The merge of a closed cohort: handed to a worker, and tried again for as long as it fails.

A merge is a pure function of the journal, so a try can be repeated. What fails is seldom the merge itself: its process
was killed for its memory, or the disk is full. Either may pass, and a restart would not help, so the daemon neither
ends nor gives up: it serves its devices and its operator meanwhile, and says what is wrong.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass

from aggregator.errors import StoreCorrupt
from aggregator.rounds.layers import SelectionJob, select_job
from aggregator.rounds.work import MergeJob, StoredVersion, merge_cohort

__all__ = ["MergeFailure", "Merging"]

RETRY_FIRST_S = 1.0
"""Seconds from the first failure to the next try; every further failure doubles them."""
RETRY_MAX_S = 300.0
"""Longest wait for the next try."""
_FINAL = (OSError, StoreCorrupt)
"""What no further try can mend: the kernel forgets dirty pages after a failed fsync, and what is lost stays lost."""

Merged = tuple[StoredVersion, tuple[str, ...]]
"""The next version, and the report as JSON lines."""


@dataclass(frozen=True, kw_only=True)
class MergeFailure:
    """Why there is no next version yet."""

    tries: int
    """Tries that failed, one after the other."""
    reason: str
    """What the last one failed with, for people."""
    retry_at: float
    """When the next one starts, seconds."""


class Merging:
    """Has one cohort after the other merged.

    Args:
        worker: Who merges.
    """

    def __init__(self, worker: Executor) -> None:
        self._worker = worker
        self._job: MergeJob | SelectionJob | None = None
        self._future: Future[Merged] | None = None
        self.failure: MergeFailure | None = None

    def begin(self, job: MergeJob | SelectionJob) -> None:
        """Takes a cohort on; the next :meth:`poll` hands it to the worker."""
        self._job, self._future, self.failure = job, None, None

    def poll(self, now: float) -> Merged | None:
        """Hands a cohort to the worker when it is time to.

        Returns:
            The next version, once, when it is there. It may be asked for anew by :meth:`failed`.

        Raises:
            StoreCorrupt: An object of the cohort is missing or damaged.
            OSError: The disk failed.
        """
        if self._job is None:
            return None
        if self._future is None and (self.failure is None or now >= self.failure.retry_at):
            self._future = self._submitted(self._job)
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, _FINAL):
            raise error
        self.failed(error, now)
        return None

    def failed(self, error: BaseException, now: float) -> None:
        """A try came to nothing: the next one follows after a while."""
        tries = 1 if self.failure is None else self.failure.tries + 1
        wait_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(tries - 1, 30))
        reason = f"{type(error).__name__}: {error}"
        self.failure = MergeFailure(tries=tries, reason=reason, retry_at=now + wait_s)

    def end(self) -> None:
        """The version that :meth:`poll` returned is committed."""
        self._job, self.failure = None, None

    def next_event(self, now: float) -> float | None:
        """When :meth:`poll` has something to start; None while the worker works, or has nothing to do."""
        if self._job is None or self._future is not None:
            return None
        return now if self.failure is None else self.failure.retry_at

    def _submitted(self, job: MergeJob | SelectionJob) -> Future[Merged]:
        try:
            if isinstance(job, SelectionJob):
                return self._worker.submit(select_job, job)
            return self._worker.submit(merge_cohort, job)
        except BrokenExecutor as error:
            refused: Future[Merged] = Future()
            refused.set_exception(error)
            return refused
