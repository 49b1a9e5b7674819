"""An aggregator's core without sockets: fake devices that say anything, a clock to turn, and workers to step."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.config import RunConfig
from aggregator.federation import Executors, Federation
from aggregator.hub import Hub
from aggregator.merge import GlobalState
from aggregator.runs import add_first_version
from aggregator.store.journal import Journal
from aggregator.store.objects import ObjectStore
from aggregator.store.recovery import recover_store
from aggregator.store.states import view_state
from protocol import messages
from protocol.assignment import Assignment
from protocol.errors import NackCode
from protocol.header import decode, encode
from protocol.identity import upload_id
from protocol.manifest import Manifest, Quantization
from protocol.payload import AdapterTensors


class SteppedExecutor(Executor):
    """Does the work where it is submitted, or, once ``held``, when the test says so, and remembers the jobs."""

    def __init__(self) -> None:
        self.held = False
        self.jobs: list[Any] = []
        self._pending: deque[Callable[[], None]] = deque()

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()

        def work() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        self.jobs += args
        self._pending.append(work)
        if not self.held:
            self.step()
        return future

    def step(self) -> None:
        """Does all that is pending."""
        while self._pending:
            self._pending.popleft()()

    def release(self) -> None:
        """Does all that is pending, and from now on what is submitted."""
        self.held = False
        self.step()


class FakeDevice:
    """A device that says whatever a test wants, legal or not, and remembers what it was told."""

    def __init__(self, world: "World", key: str, peer: bytes) -> None:
        self.world, self.key, self.peer = world, key, peer
        self.inbox: list[messages.Message] = []

    def raw(self, *frames: bytes) -> list[messages.Message]:
        """Sends frames as they are; what came back for this device."""
        self.inbox.clear()
        self.world.deliver(self.world.hub.feed(self.peer, self.key, frames, self.world.now))
        return list(self.inbox)

    def say(self, message: messages.Message) -> messages.Message | None:
        """Sends one message; the answer, if one came at once."""
        answers = self.raw(*encode(replace(message, q=77)))
        assert len(answers) <= 1
        assert all(answer.q == 77 or (answer.q == 0 and answer.code is NackCode.ILLEGAL) for answer in answers)
        return answers[0] if answers else None

    def hello(self) -> messages.Message | None:
        """Opens a new connection."""
        self.peer = self.world.new_peer()
        self.world.devices[self.peer] = self
        return self.say(messages.Hello(version_min=2, version_max=2, sdk="fake"))

    def ready(self, **changes: Any) -> messages.Message | None:
        """Asks for work."""
        manifest = self.world.manifest
        asked = messages.Ready(
            run="run",
            manifest=manifest.digest,
            fingerprint=manifest.base.fingerprint,
            quantization=Quantization.NF4,
            rank=None,
            residual=False,
            num_examples=10,
        )
        return self.say(replace(asked, **changes))

    def task(self, **changes: Any) -> Assignment:
        """Asks for work and gets some."""
        answer = self.ready(**changes)
        assert isinstance(answer, messages.Task), answer
        return Assignment.from_json(bytes(answer.payload))

    def offer(self, given: Assignment, data: bytes, **changes: Any) -> messages.Message | None:
        """Offers an update."""
        digest = hashlib.sha256(data).hexdigest()
        offered = messages.Offer(
            upload=upload_id("run", given.round, self.key, given.token, digest),
            token=given.token,
            size=len(data),
            sha256=digest,
            num_examples=10,
            metrics={"loss": 0.5},
        )
        return self.say(replace(offered, **changes))

    def chunk(self, given: Assignment, data: bytes, offset: int = 0, length: int = 1 << 20, **changes: Any):
        """Sends one piece of an update."""
        digest = hashlib.sha256(data).hexdigest()
        upload = upload_id("run", given.round, self.key, given.token, digest)
        piece = messages.Chunk(upload=upload, offset=offset, payload=data[offset : offset + length])
        return self.say(replace(piece, **changes))

    def deliver_all(self, given: Assignment, data: bytes, **changes: Any) -> messages.Message | None:
        """Offers and sends an update; the answer, None while it is being checked."""
        answer = self.offer(given, data, **changes)
        while isinstance(answer, messages.Credit):
            assert answer.have < answer.upto, "no credit"
            answer = self.chunk(given, data, answer.have)
        return answer

    def deliver(self, given: Assignment, data: bytes, **changes: Any) -> messages.Message:
        """Offers and sends an update; what became of it."""
        answer = self.deliver_all(given, data, **changes)
        if answer is None:
            self.world.poll()
            answer = self.inbox[-1]
        return answer

    def update(self, given: Assignment, size: float = 0.01, seed: int = 0) -> bytes:
        """An update of this magnitude."""
        layout = given.update_layout(self.world.manifest)
        rng = np.random.default_rng([seed, sum(self.key.encode()), given.round])
        zeros = layout.zeros(given.rank)
        slots = (size * rng.standard_normal(zeros.slots.shape)).astype(np.float32)
        dense = {n: (size * rng.standard_normal(v.shape)).astype(np.float32) for n, v in zeros.dense.items()}
        return layout.encode(AdapterTensors(dense, slots), given.update_codec)


class World:
    """An aggregator's core with a journal and objects on disk, a clock to turn, and any number of fake devices."""

    def __init__(self, folder: Path, manifest: Manifest, state: bytes | None = None, **settings: Any) -> None:
        self.folder, self.manifest = folder, manifest
        self.config = RunConfig(**{"run": "run", "rounds": 2, "cohort_size": 2, "default_rank": 2, **settings})
        self.now = 1000.0
        self.standing: dict[str, NackCode] = {}
        self._numbers, self._state = count(1), state
        self.devices: dict[bytes, FakeDevice] = {}
        self.start()

    def start(self) -> None:
        """Starts on what the folder holds."""
        self.verify, self.merge = SteppedExecutor(), SteppedExecutor()
        self.objects = ObjectStore(self.folder / "store")
        self.journal = Journal(self.folder / "journal.db")
        if not self.journal.versions():
            add_first_version(self.journal, self.objects.root, self.config, self.manifest, self._state)
        recover_store(self.journal, self.objects, self.config.keep_versions)
        self.federation = Federation(
            self.config,
            self.manifest,
            self.journal,
            self.objects,
            Executors(verify=self.verify, merge=self.merge),
            self.now,
            new_token=lambda: f"{next(self._numbers):032x}",
        )
        self.hub = Hub(self.federation, self.standing.get, epoch="epoch")

    def restart(self) -> None:
        """Crashes and starts again: connections and pending work are gone."""
        self.journal.close()
        self.devices.clear()
        self.start()

    def device(self, name: str) -> FakeDevice:
        """A device that has said ``HELLO``."""
        made = self.stranger(name)
        assert isinstance(made.hello(), messages.Welcome)
        return made

    def stranger(self, name: str) -> FakeDevice:
        """A device that has said nothing yet."""
        made = FakeDevice(self, name.ljust(40, "_"), self.new_peer())
        self.devices[made.peer] = made
        return made

    def assigned(self, names: Iterable[str] = "ab", **changes: Any) -> dict[FakeDevice, Assignment]:
        """Devices with their assignments. All ask before any gets one: a round begins with its cohort."""
        devices = [self.device(name) for name in names]
        for device in devices:
            device.ready(**changes)
        return {device: device.task(**changes) for device in devices}

    def play(
        self, names: Iterable[str] = "ab", *, rounds: int = 1, size: float = 0.01, **changes: Any
    ) -> list[FakeDevice]:
        """Rounds in which each of these devices delivers an update of this magnitude; the last round's devices."""
        given: dict[FakeDevice, Assignment] = {}
        for _ in range(rounds):
            given = self.assigned(names, **changes)
            for device, task in given.items():
                answer = device.deliver(task, device.update(task, size=size))
                assert isinstance(answer, messages.Ack), answer
        return list(given)

    def new_peer(self) -> bytes:
        return next(self._numbers).to_bytes(8, "big")

    def hold_workers(self, held: bool) -> None:
        """Lets what the workers are given wait from now on, or does it."""
        for worker in (self.verify, self.merge):
            if held:
                worker.held = True
            else:
                worker.release()

    def poll(self, after_s: float = 0.0) -> None:
        """Lets time pass, and the aggregator act."""
        self.now += after_s
        self.deliver(self.hub.poll(self.now))

    def deliver(self, outgoing: Iterable[tuple[bytes, list]]) -> None:
        for peer, frames in outgoing:
            if peer in self.devices:
                self.devices[peer].inbox.append(decode(frames))

    def state(self) -> GlobalState:
        """The live version's state."""
        return GlobalState.of_tensors(view_state(self.objects, self.federation.version.state), self.manifest)
