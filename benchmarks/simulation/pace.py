"""Devices that take their time: a job is done at once, and its result is there when the virtual clock says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from benchmarks.simulation.devices import Device
from edge_client.session.events import Trained
from edge_client.session.worker import JobResult
from edge_client.trainer import Progress

__all__ = ["PacedWorker"]


@final
class PacedWorker:
    """Implements :class:`edge_client.session.worker.Worker` on a virtual clock.

    Args:
        clock: The time, seconds.
        device: How long it takes for an assignment; its other jobs take no time.

    Attributes:
        ready_at: When the result of the job in hand is there; None: there is none.
    """

    def __init__(self, clock: Callable[[], float], device: Device) -> None:
        self._clock, self._device = clock, device
        self._result: JobResult | None = None
        self._steps = 0
        self.ready_at: float | None = None

    def start(self, job: Callable[[], JobResult]) -> None:
        """Does a job."""
        self._steps = 0
        self._result = job()
        trained = isinstance(self._result, Trained)
        self.ready_at = self._clock() + (self._device.training_s(self._steps) if trained else 0.0)

    def stepped(self, progress: Progress) -> None:
        """The job in hand did another optimizer step."""
        self._steps = progress.step

    def suspend(self, until: float) -> None:
        """Stands still from now on; what is left of the job in hand is done afterwards."""
        if self.ready_at is not None:
            self.ready_at += until - self._clock()

    def take(self) -> JobResult | None:
        """What came of the job, from ``ready_at`` on."""
        if self.ready_at is None or self._clock() < self.ready_at:
            return None
        result, self._result, self.ready_at = self._result, None, None
        return result

    def close(self) -> None:
        """Nothing runs any more."""
