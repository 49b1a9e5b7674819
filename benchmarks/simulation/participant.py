"""One device of a simulated run: the product's engine and driver, at its own pace, and sometimes away."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from benchmarks.simulation.devices import Device
from benchmarks.simulation.memory import MemoryTransport
from benchmarks.simulation.pace import PacedWorker
from edge_client.session.driver import Driver
from edge_client.session.engine import Engine
from edge_client.session.jobs import Jobs
from edge_client.storage.home import Home
from edge_client.trainer import Trainer

__all__ = ["Participant"]


@final
class Participant:
    """Does what a device has to do, while it is there.

    A device that leaves is suspended, as a phone suspends an app: its link breaks, what was on its way is lost, its
    training stands still, and it dials again once it is back.

    Args:
        engine: What decides.
        connect: Opens a link.
        home: Its folder.
        trainer: What trains.
        device: How fast it is, and when it is there.
        clock: The time, seconds.

    Attributes:
        driver: Runs the engine.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        connect: Callable[[], MemoryTransport],
        home: Home,
        trainer: Trainer,
        device: Device,
        clock: Callable[[], float],
    ) -> None:
        self._connect, self._home, self._device, self._clock = connect, home, device, clock
        self._link: MemoryTransport | None = None
        self._back_at: float | None = None
        self._worker = PacedWorker(clock, device)
        jobs = Jobs(home, trainer, cancelled=lambda: False, progress=self._worker.stepped)
        self.driver = Driver(engine=engine, connect=self._dial, home=home, jobs=jobs, worker=self._worker, clock=clock)

    @property
    def over(self) -> bool:
        """Whether it has the final adapter, or failed."""
        return self.driver.finished is not None or self.driver.error is not None

    @property
    def wake_at(self) -> float | None:
        """When it has something to do even if nothing arrives; None: once it is over."""
        if self.over:
            return None
        if self._back_at is not None:
            return self._back_at
        times = (self.driver.wake_at, self._worker.ready_at, self._device.leaves_at(self._clock()))
        return min((time for time in times if time is not None), default=None)

    def turn(self) -> bool:
        """Does all that can be done now; whether anything was sent or received."""
        if self.over or self._away():
            return False
        before = self.driver.traffic
        self.driver.poll()
        return self.driver.traffic != before

    def close(self) -> None:
        """Ends the device; its folder stays."""
        self.driver.close()
        self._home.close()

    def _away(self) -> bool:
        now = self._clock()
        if self._back_at is not None and now < self._back_at:
            return True
        self._back_at = self._device.away_until(now)
        if self._back_at is None:
            return False
        self._worker.suspend(self._back_at)
        if self._link is not None:
            self._link.cut()
        return True

    def _dial(self) -> MemoryTransport:
        self._link = self._connect()
        return self._link
