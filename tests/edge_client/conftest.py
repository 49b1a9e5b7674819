"""A small, honest aggregator in memory, whose links can be cut at any message, and a device to run against it."""

from __future__ import annotations

import hashlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth.thread import ThreadAuthenticator

from edge_client.session.driver import Driver
from edge_client.session.engine import Engine
from edge_client.session.events import Settled
from edge_client.session.jobs import Jobs
from edge_client.session.worker import InlineWorker
from edge_client.storage.home import Home
from edge_client.trainer import Trainer
from edge_client.trainers.numpy_trainer import NumpyTrainer
from edge_client.transport import AuthenticationFailed, Connected, Disconnected, LinkEvent, Received
from protocol.assignment import Assignment, AssignmentKind, Handout, split_layouts
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.identity import upload_id
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind
from protocol.messages import (
    Ack,
    Bye,
    Chunk,
    Credit,
    Data,
    Decline,
    Enrol,
    Enrolled,
    Finished,
    Get,
    Hello,
    Message,
    Nack,
    Offer,
    Ping,
    Pong,
    Ready,
    Report,
    Role,
    Welcome,
)
from protocol.messages import Task as TaskMessage
from protocol.payload import Layout
from protocol.session import Session
from protocol.ticket import Ticket
from protocol.transfer import Receiver

RUN = "run-1"
PUBLIC_KEY = "a" * 40
RANK = 2
CHUNK = 32 << 10


def small_manifest() -> Manifest:
    """Large enough that every object needs several chunks."""
    return Manifest(
        base=BaseModel(name="none", fingerprint="0" * 64, architecture="none", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.CAUSAL_LM),
        rank_max=4,
        low_rank=(LowRankModule(name="q", out_features=6_000, in_features=4_000),),
        dense=(DenseTensor(name="bias", shape=(7,)),),
    )


@dataclass
class FakeAggregator:
    """Serves one device: rounds of one assignment each, then the final adapter."""

    rounds: int = 1
    kinds: Sequence[AssignmentKind] = (AssignmentKind.TRAIN,)
    active: tuple[str, ...] | None = None
    """What to train alone; then the rest is an object of its own."""
    cuts: frozenset[int] = frozenset()
    """Which messages, counted in both directions, never arrive: the link breaks instead."""
    kills: frozenset[int] = frozenset()
    """At which messages, counted likewise, the device's process dies: half of them arrive."""
    intercept: Callable[[Message], Message | Sequence[Message] | None] = lambda message: None
    """May answer in the aggregator's place."""
    manifest: Manifest = field(default_factory=small_manifest)
    objects: dict[str, bytes] = field(default_factory=dict)
    receivers: dict[str, tuple[Receiver, bytearray, Offer]] = field(default_factory=dict)
    durable: list[tuple[int, str]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    declined: list[Decline] = field(default_factory=list)
    heard: list[Message] = field(default_factory=list)
    passed: int = 0
    refuse_key: int = 0
    public_key: str = PUBLIC_KEY

    def __post_init__(self) -> None:
        layout = Layout.of(self.manifest)
        self.objects[self.manifest.digest] = self.manifest.to_json()
        self.handout = self.stored(layout)
        self.parts = tuple(map(self.stored, split_layouts(self.manifest, self.active))) if self.active else None

    def stored(self, layout: Layout) -> Handout:
        data = layout.encode(layout.zeros(RANK if layout.low_rank else 0), Codec.FP32)
        digest = hashlib.sha256(data).hexdigest()
        self.objects[digest] = data
        return Handout(digest=digest, object_bytes=len(data), codec=Codec.FP32, slots=RANK)

    @property
    def round(self) -> int:
        return 1 + len(self.durable) + len(self.reports)

    @property
    def assignment(self) -> Assignment:
        return Assignment(
            kind=self.kinds[(self.round - 1) % len(self.kinds)],
            run=RUN,
            round=self.round,
            version=self.round - 1,
            token=f"{self.round:032x}",
            rank=RANK,
            handout=self.handout if self.parts is None else self.parts[0],
            active=self.active,
            inactive=None if self.parts is None else self.parts[1],
        )

    def connect(self) -> FakeLink:
        return FakeLink(self)

    def answer(self, message: Message) -> list[Message]:
        self.heard.append(message)
        other = self.intercept(message)
        if other is not None:
            return [replace(one, q=message.q) for one in (other if isinstance(other, Sequence) else [other])]
        q = message.q
        match message:
            case Hello():
                digest, size = self.manifest.digest, len(self.manifest.to_json())
                return [
                    Welcome(q=q, version=2, run=RUN, epoch="e", manifest=digest, manifest_bytes=size, chunk_max=CHUNK)
                ]
            case Ready():
                if self.round > self.rounds:
                    return [Finished(q=q, version=self.rounds, rank=RANK, handout=self.handout)]
                return [TaskMessage(q=q, payload=self.assignment.to_json())]
            case Get(digest=digest, offset=offset, length=length):
                return [Data(q=q, digest=digest, offset=offset, payload=self.objects[digest][offset : offset + length])]
            case Offer():
                return [self._offered(message)]
            case Chunk():
                return [self._chunk(message)]
            case Report():
                if all(report.token != message.token for report in self.reports):
                    self.reports.append(message)
                return [Ack(q=q, ref=message.token)]
            case Decline():
                self.declined.append(message)
                return [Ack(q=q, ref=message.token)]
            case Ping():
                return [Pong(q=q)]
            case Bye():
                return []
        raise AssertionError(f"unexpected {message}")

    def _offered(self, offer: Offer) -> Message:
        number = int(offer.token, 16)
        assert offer.upload == upload_id(RUN, number, self.public_key, offer.token, offer.sha256)
        if (number, offer.sha256) in self.durable:
            return Ack(q=offer.q, ref=offer.upload)
        if number != self.round:
            return Nack(q=offer.q, code=NackCode.STALE, reason="over", ref=offer.upload)
        receiver, _, _ = self.receivers.setdefault(
            offer.upload, (Receiver(offer.size, window_bytes=2 * CHUNK), bytearray(offer.size), offer)
        )
        return Credit(q=offer.q, upload=offer.upload, have=receiver.have, upto=receiver.upto)

    def _chunk(self, chunk: Chunk) -> Message:
        receiver, held, offer = self.receivers[chunk.upload]
        if receiver.accept(chunk.offset, len(chunk.payload)):
            held[chunk.offset : chunk.offset + len(chunk.payload)] = chunk.payload
        if not receiver.complete:
            return Credit(q=chunk.q, upload=chunk.upload, have=receiver.have, upto=receiver.upto)
        assert hashlib.sha256(held).hexdigest() == offer.sha256
        self.durable.append((int(offer.token, 16), offer.sha256))
        return Ack(q=chunk.q, ref=chunk.upload)


class Killed(BaseException):
    """Stands for the end of the device's process: nothing after it is executed."""


class FakeLink:
    """One connection to a :class:`FakeAggregator`."""

    def __init__(self, aggregator: FakeAggregator) -> None:
        self._aggregator = aggregator
        self._session = Session(Role.AGGREGATOR)
        self._events: deque[LinkEvent] = deque()
        self._broken = self._closed = False
        self.bytes_sent = self.bytes_received = 0
        if aggregator.refuse_key > 0:
            aggregator.refuse_key -= 1
            self._events.append(AuthenticationFailed())
        else:
            self._events.append(Connected())

    def send(self, frames: Sequence[bytes | memoryview]) -> None:
        assert not self._closed
        if self._lost():
            return
        self.bytes_sent += sum(map(len, frames))
        for answer in self._aggregator.answer(self._session.receive(frames)):
            if self._lost():
                return
            self._events.append(Received(self._session.send(answer)))

    def recv(self, timeout_s: float) -> LinkEvent | None:
        assert not self._closed
        event = self._events.popleft() if self._events else None
        if isinstance(event, Received):
            self.bytes_received += sum(map(len, event.frames))
        return event

    def close(self) -> None:
        self._closed = True

    def _lost(self) -> bool:
        if not self._broken:
            self._aggregator.passed += 1
            if self._aggregator.passed in self._aggregator.kills:
                raise Killed
            if self._aggregator.passed in self._aggregator.cuts:
                self._broken = True
                self._events.append(Disconnected("cut"))
        return self._broken


class Device:
    """A client in virtual time; :meth:`restart` is what a reboot does."""

    def __init__(self, aggregator: FakeAggregator, folder: Path, trainer: Trainer | None = None) -> None:
        self.aggregator, self.folder = aggregator, folder
        self.trainer = CountingTrainer(trainer or NumpyTrainer(seed=1, num_examples=7))
        self.now = 0.0
        self.settled: list[Settled] = []
        self.home: Home | None = None
        self.restart()

    def restart(self, *, authentication_retries: int = 0) -> Driver:
        if self.home is not None:
            self.home.close()
        self.home = home = Home(self.folder)
        self.engine = Engine(
            run=RUN,
            public_key=PUBLIC_KEY,
            sdk="test",
            rng=random.Random(7),
            outbox=home.outbox.entries(),
            authentication_retries=authentication_retries,
        )
        self.driver = Driver(
            engine=self.engine,
            connect=self.aggregator.connect,
            home=home,
            jobs=Jobs(home, self.trainer, cancelled=lambda: False, progress=lambda progress: None),
            worker=InlineWorker(),
            clock=lambda: self.now,
            on_settled=self.settled.append,
        )
        return self.driver

    def step(self) -> None:
        """One poll, and on to the next thing that is due."""
        before = self.engine.phase, self.aggregator.passed
        self.driver.poll()
        due = self.driver.wake_at
        if (self.engine.phase, self.aggregator.passed) == before and due is not None:
            self.now = max(self.now, due)

    def run(self, until: Callable[[], bool] = lambda: False, steps: int = 2000) -> Driver:
        for _ in range(steps):
            if self.engine.phase.over or until():
                return self.driver
            try:
                self.step()
            except Killed:
                self.restart()
        raise AssertionError(f"still {self.engine.phase} after {steps} steps")


class CountingTrainer:
    """Any trainer, with a record of the rounds it was asked to train."""

    def __init__(self, inner: Trainer) -> None:
        self._inner = inner
        self.rounds: list[int] = []
        self.info = inner.info
        self.install = inner.install

    def run(self, assignment, handout, **calls):  # type: ignore[no-untyped-def]
        self.rounds.append(assignment.round)
        return self._inner.run(assignment, handout, **calls)


class Loopback:
    """A :class:`FakeAggregator` behind real ROUTER sockets with CURVE, in a thread of its own."""

    def __init__(self, aggregator: FakeAggregator) -> None:
        self.aggregator = aggregator
        self.enrolled: set[str] = set()
        self.tokens: dict[str, str] = {}
        self.slow_to_notice = 0
        self.public, self._secret = (part.decode() for part in zmq.curve_keypair())
        self._context = zmq.Context()
        self._authenticator = ThreadAuthenticator(self._context)
        self._authenticator.start()
        for domain in ("data", "enrolment"):
            self._authenticator.configure_curve_callback(domain=domain, credentials_provider=self)
        self._data, self.endpoint = self._bind("data")
        self._enrolment, self.enrolment_endpoint = self._bind("enrolment")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def callback(self, domain: str, key: bytes) -> bool:
        if domain == "enrolment":
            return True
        if self.slow_to_notice > 0:
            self.slow_to_notice -= 1
            return False
        return key.decode() in self.enrolled

    def ticket(self, token: str | None = "1" * 32) -> Ticket:
        if token is not None:
            self.tokens.setdefault(token, "")
        return Ticket(
            run=RUN,
            endpoint=self.endpoint,
            enrolment_endpoint=self.enrolment_endpoint,
            server_key=self.public,
            token=token,
        )

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._data.close()
        self._enrolment.close()
        self._authenticator.stop()
        self._context.term()

    def _bind(self, domain: str) -> tuple[zmq.Socket[bytes], str]:
        socket = self._context.socket(zmq.ROUTER)
        socket.curve_server, socket.curve_secretkey, socket.linger = True, self._secret.encode(), 0
        socket.zap_domain = domain.encode()
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        return socket, f"tcp://127.0.0.1:{port}"

    def _serve(self) -> None:
        sessions: dict[bytes, Session] = {}
        poller = zmq.Poller()
        poller.register(self._data, zmq.POLLIN)
        poller.register(self._enrolment, zmq.POLLIN)
        while not self._stop.is_set():
            for socket, _ in poller.poll(20):
                peer, *frames = socket.recv_multipart(copy=False)
                key = frames[0].get("User-Id")
                if socket is self._enrolment:
                    session = Session(Role.AGGREGATOR)
                    answers = [self._enrol(key, session.receive([frame.bytes for frame in frames]))]
                else:
                    self.aggregator.public_key = key
                    session = sessions.setdefault(peer.bytes, Session(Role.AGGREGATOR))
                    answers = self.aggregator.answer(session.receive([frame.bytes for frame in frames]))
                for answer in answers:
                    socket.send_multipart([peer.bytes, *session.send(answer)])

    def _enrol(self, key: str, enrol: Message) -> Message:
        assert isinstance(enrol, Enrol)
        if self.tokens.get(enrol.token) not in ("", key):
            return Nack(q=enrol.q, code=NackCode.TICKET, reason="used or unknown")
        self.tokens[enrol.token] = key
        self.enrolled.add(key)
        return Enrolled(q=enrol.q, run=RUN)


@pytest.fixture
def loopback() -> Iterator[Callable[..., Loopback]]:
    """``loopback()`` serves a fake aggregator on random ports of this machine."""
    made: list[Loopback] = []

    def make(**fields: Any) -> Loopback:
        made.append(Loopback(FakeAggregator(**fields)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def fake_aggregator() -> type[FakeAggregator]:
    return FakeAggregator


@pytest.fixture(scope="session")
def device_in() -> type[Device]:
    return Device


@pytest.fixture
def device(tmp_path: Path):  # type: ignore[no-untyped-def]
    """``device(aggregator)`` makes one in a fresh folder."""
    made: list[Device] = []

    def make(aggregator: FakeAggregator, trainer: Trainer | None = None, folder: Path | None = None) -> Device:
        made.append(Device(aggregator, folder or tmp_path / f"device{len(made)}", trainer))
        return made[-1]

    yield make
    for one in made:
        if one.home is not None:
            one.home.close()
