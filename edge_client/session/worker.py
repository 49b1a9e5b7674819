"""Who runs the trainer: a thread of its own on a device, the caller itself in simulations."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from edge_client.session.events import Failed, Installed, Prepared, Trained

__all__ = ["InlineWorker", "JobResult", "ThreadWorker", "Worker"]

JobResult = Prepared | Trained | Installed | Failed


class Worker(Protocol):
    """Runs one job at a time, all of them in one thread."""

    def start(self, job: Callable[[], JobResult]) -> None:
        """Begins a job; the one before it has been taken."""

    def take(self) -> JobResult | None:
        """What came of the job, once; None while it runs or when there is none."""

    def close(self) -> None:
        """Waits for the job in hand, which the owner has asked to stop."""


class ThreadWorker:
    """Runs jobs in a thread, so that the link stays alive while the device trains."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tributary-trainer")
        self._running: Future[JobResult] | None = None

    def start(self, job: Callable[[], JobResult]) -> None:
        """Begins a job."""
        self._running = self._pool.submit(job)

    def take(self) -> JobResult | None:
        """What came of the job."""
        if self._running is None or not self._running.done():
            return None
        result, self._running = self._running.result(), None
        return result

    def close(self) -> None:
        """Waits for the job in hand."""
        self._pool.shutdown(wait=True, cancel_futures=True)


class InlineWorker:
    """Runs a job where it is started: for simulations and tests, where time is virtual."""

    def __init__(self) -> None:
        self._result: JobResult | None = None

    def start(self, job: Callable[[], JobResult]) -> None:
        """Runs a job to its end."""
        self._result = job()

    def take(self) -> JobResult | None:
        """What came of the job."""
        result, self._result = self._result, None
        return result

    def close(self) -> None:
        """Nothing runs any more."""
