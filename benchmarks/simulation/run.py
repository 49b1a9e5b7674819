"""One simulated run: a federation and its devices in one thread, driven to the end in virtual time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from aggregator.config import RunConfig
from aggregator.federation import Executors, Federation
from aggregator.hub import Hub
from aggregator.rounds.merge_rule import merge_rule
from aggregator.runs import add_first_version
from aggregator.store.journal import Journal
from aggregator.store.objects import ObjectStore
from aggregator.store.states import view_state
from benchmarks.simulation.agenda import Agenda
from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.committed import Committed
from benchmarks.simulation.devices import Device
from benchmarks.simulation.memory import MemoryNetwork, MemoryTransport
from benchmarks.simulation.participant import Participant
from edge_client.session.driver import Traffic
from edge_client.session.engine import Engine
from edge_client.storage.home import Home
from edge_client.trainer import Trainer
from protocol.manifest import Manifest

__all__ = ["SimulatedRun", "StalledError"]

P = ParamSpec("P")
T = TypeVar("T")


class StalledError(RuntimeError):
    """A run does not end: for instance, the aggregator refuses every update."""


class InlineExecutor(Executor):
    """Does the work where it is submitted."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs ``fn`` at once; what it raises is kept in the future."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class SimulatedRun:
    """A federation over memory: the product's engine, driver, hub, round machine, journal and merge.

    Args:
        folder: Where journal, objects and the devices' folders go; what an earlier run left there is resumed.
        config: The operator's settings.
        manifest: The run's universe.
        trainers: One trainer a device.
        seed: Of the devices' jitter.
        devices: How fast each device is, and when it is there; None: all are there, and nothing takes any time.

    Example:
        >>> import tempfile
        >>> from edge_client.trainers.numpy_trainer import NumpyTrainer
        >>> from benchmarks.simulation.manifests import toy_manifest
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = RunConfig(run="doc", rounds=2, cohort_size=2, default_rank=2)
        ...     trainers = [NumpyTrainer(seed=1, rank=1), NumpyTrainer(seed=2, rank=4)]
        ...     with SimulatedRun(Path(folder), config, toy_manifest(rank_max=4), trainers) as run:
        ...         run.until_finished()
        ...         run.federation.version.version
        2
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        manifest: Manifest,
        trainers: Sequence[Trainer],
        *,
        seed: int = 0,
        devices: Sequence[Device] | None = None,
    ) -> None:
        self._folder, self._config, self._manifest = folder, config, manifest
        self._objects = ObjectStore(folder / "store")
        self.clock = VirtualClock()
        self.start_aggregator()
        self._agenda = Agenda()
        given = [Device()] * len(trainers) if devices is None else devices
        self._participants = [
            self._participant(index, trainer, device, seed)
            for index, (trainer, device) in enumerate(zip(trainers, given, strict=True))
        ]
        self._failed: Exception | None = None
        self.drivers = [participant.driver for participant in self._participants]
        self._unfinished = set(range(len(trainers)))
        for index in self._unfinished:
            self._agenda.call(index)

    def start_aggregator(self) -> None:
        """Starts the aggregator on what the folder holds; again, after :meth:`stop_aggregator`, as a restart does."""
        self.journal = Journal(self._folder / "journal.db")
        if not self.journal.versions():
            add_first_version(self.journal, self._objects.root, self._config, self._manifest)
        executors = Executors(verify=InlineExecutor(), merge=InlineExecutor())
        self.federation = Federation(
            self._config, self._manifest, self.journal, self._objects, executors, now=self.clock()
        )
        self.network = MemoryNetwork(Hub(self.federation, lambda key: None, epoch="simulated"), self.clock)

    def stop_aggregator(self) -> None:
        """Ends the aggregator without any farewell, as a crash does: every connection breaks."""
        self.network.break_links()
        self.journal.close()

    def step(self) -> None:
        """Lets everybody do what there is to do now; if there was nothing, lets time pass to the next event."""
        busy = self.network.poll()
        for index in self._agenda.turns(self.clock()):
            busy |= self._turn(index)
        if not busy and self._agenda.idle:
            self.clock.advance_to(min(self._events(), default=0.0))

    def until_finished(
        self, observer: Callable[[Committed], None] | None = None, *, observed: int = -1, steps_max: int = 1_000_000
    ) -> None:
        """Runs until every device holds the final adapter.

        Args:
            observer: Told about every version once it is committed, version 0 included; time stands still meanwhile.
            observed: The last version that an earlier process, which ended before the run did, told its observer about.
            steps_max: Bound on the steps.

        Raises:
            RuntimeError: A device failed.
            StalledError: The run does not end within ``steps_max`` steps.
        """
        for _ in range(steps_max):
            while observer is not None and observed < self.federation.version.version:
                observed += 1
                observer(self.committed(observed))
            if self._failed is not None:
                raise RuntimeError(f"a simulated device failed: {self._failed}") from self._failed
            if not self._unfinished:
                return
            self.step()
        raise StalledError(f"the run did not end within {steps_max} steps")

    def committed(self, version: int) -> Committed:
        """One version that is still on disk: the live one, and as many before it as ``keep_versions`` says."""
        row, strategy = self.journal.versions()[version], merge_rule(self._config).strategy
        state = strategy.of_tensors(view_state(self._objects, row.state_digest), self._manifest)
        return Committed(
            version=version,
            offset=strategy.offset(state, self._manifest),
            report=[json.loads(line) for line in self.journal.reports(row.round)] if version else [],
            traffic=self.traffic,
        )

    @property
    def traffic(self) -> Traffic:
        """Bytes of all devices together."""
        each = [driver.traffic for driver in self.drivers]
        return Traffic(sum(traffic.sent for traffic in each), sum(traffic.received for traffic in each))

    def close(self) -> None:
        """Ends devices and aggregator; the folder stays."""
        for participant in self._participants:
            participant.close()
        self.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _turn(self, index: int) -> bool:
        """One device's; whether it sent or received anything, in which case it may have more to do."""
        participant = self._participants[index]
        moved = participant.turn()
        if participant.over:
            self._unfinished.discard(index)
            self._failed = self._failed or participant.driver.error
        elif moved:
            self._agenda.call(index)
        self._agenda.plan(index, participant.wake_at)
        return moved

    def _events(self) -> list[float]:
        times = (self._agenda.next_event(), self.network.next_arrival, self.federation.next_wakeup(self.clock()))
        return [time for time in times if time is not None]

    def _participant(self, index: int, trainer: Trainer, device: Device, seed: int) -> Participant:
        key = f"simulated-device-{index:022d}"

        def connect() -> MemoryTransport:
            return self.network.connect(key, device, lambda: self._agenda.call(index))

        return Participant(
            engine=Engine(run=self._config.run, public_key=key, sdk="simulation", rng=random.Random(f"{seed} {index}")),
            connect=connect,
            home=Home(self._folder / f"device-{index}"),
            trainer=trainer,
            device=device,
            clock=self.clock,
        )
