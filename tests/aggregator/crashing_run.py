"""A run of six devices that can be cut anywhere and taken up again, as real devices and a real daemon would."""

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aggregator.intake import uploads
from aggregator.rounds.work import MergeJob, StoredUpdate, StoredVersion, merge_cohort
from aggregator.store.retention import live_objects
from aggregator.store.rows import UploadRow
from protocol import messages
from protocol.assignment import Assignment
from protocol.header import decode
from protocol.manifest import Manifest
from tests.aggregator.crash_points import CrashPoints
from tests.aggregator.world import FakeDevice, World

RANKS = {"a": 1, "b": 2, "c": 4, "bad": 2, "busy": 1, "late": 2}
"""Six devices, of which three deliver: one sends garbage, one declines, one is too late."""
PIECE_BYTES, JOURNAL_EVERY_BYTES = 150, 200
TURNS_MAX = 30
_DECISIONS = (messages.Task, messages.Credit, messages.Ack, messages.Nack, messages.Finished)


class Diary:
    """What the devices wrote down: it outlives them, as an outbox does."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, device: str, what: str, given: Assignment) -> None:
        line = json.dumps([device, what, given.to_json().decode()]) + "\n"
        with self._path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def entries(self, device: str) -> list[tuple[str, Assignment]]:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        found = [json.loads(line) for line in lines]
        return [(what, Assignment.from_json(given.encode())) for name, what, given in found if name == device]


class RecordedWorld(World):
    """A world whose answers are crash points, over a folder that may hold an interrupted run.

    Args:
        folder: Where journal, objects and the devices' diary lie.
        manifest: The run's universe.
        points: Told of every answer.
        life: How often the run was begun before: no token may come twice.
    """

    def __init__(self, folder: Path, manifest: Manifest, points: CrashPoints, life: int, **settings: Any) -> None:
        self.points, self.life = points, life
        super().__init__(folder, manifest, **{"cohort_size": 3, "over_selection": 2.0, **settings})

    def start(self) -> None:
        self._numbers = count(1 + 1_000_000 * self.life)
        super().start()

    def deliver(self, outgoing) -> None:
        for peer, frames in outgoing:
            answer = decode(frames)
            if isinstance(answer, _DECISIONS):
                self.points.reach(f"answer {answer.type}")
            super().deliver([(peer, frames)])


class PatientDevice:
    """A device as the SDK is one: what it trained stays in its outbox until it is told what became of it."""

    def __init__(self, world: RecordedWorld, name: str, diary: Diary) -> None:
        self.world, self.name, self.diary = world, name, diary
        self.fake: FakeDevice = world.device(name)
        self.finished = False

    def turn(self) -> None:
        """Asks for work, or goes on with what is in the outbox."""
        given = self.outbox()
        if given is None:
            self.ask()
        elif self.name != "late" or self.world.federation.round.number > given.round:
            self.send(given)

    def outbox(self) -> Assignment | None:
        """The update that nobody has answered yet."""
        entries = self.diary.entries(self.name)
        return entries[-1][1] if entries and entries[-1][0] == "trained" else None

    def ask(self) -> None:
        answer = self.fake.ready(rank=RANKS[self.name])
        self.finished = isinstance(answer, messages.Finished)
        if isinstance(answer, messages.Task):
            self.work(Assignment.from_json(bytes(answer.payload)))

    def work(self, given: Assignment) -> None:
        for what, earlier in self.diary.entries(self.name):
            assert earlier.round != given.round, f"{self.name} had {what} round {given.round}, and was asked again"
        if self.name == "busy":
            answer = self.fake.say(messages.Decline(token=given.token, reason="busy"))
            assert isinstance(answer, messages.Ack)
            return
        piece = self.fake.say(messages.Get(digest=given.handout.digest, offset=0, length=1 << 20))
        assert sha256(piece.payload).hexdigest() == given.handout.digest
        self.diary.note(self.name, "trained", given)
        if self.name == "late":
            self.begin(given)

    def begin(self, given: Assignment) -> None:
        """Sends the first piece, and dallies."""
        if isinstance(self.fake.offer(given, self.update(given), num_examples=ord(self.name[0])), messages.Credit):
            self.fake.chunk(given, self.update(given), 0, PIECE_BYTES)

    def send(self, given: Assignment) -> None:
        data = self.update(given)
        answer = self.fake.offer(given, data, num_examples=ord(self.name[0]))
        while isinstance(answer, messages.Credit):
            answer = self.fake.chunk(given, data, answer.have, PIECE_BYTES)
        if answer is None:
            self.world.poll()
            answer = self.fake.inbox[-1]
        assert isinstance(answer, messages.Ack | messages.Nack), answer
        self.diary.note(self.name, "delivered" if isinstance(answer, messages.Ack) else f"lost {answer.code}", given)

    def update(self, given: Assignment) -> bytes:
        data = self.fake.update(given)
        return b"\xff" * len(data) if self.name == "bad" else data


def play(world: RecordedWorld) -> None:
    """Lets everybody go on until all hold the final version."""
    diary = Diary(world.folder / "diary")
    devices = [PatientDevice(world, name, diary) for name in RANKS]
    for _ in range(TURNS_MAX):
        for device in devices:
            device.turn()
        world.poll(after_s=3.0)
        if all(device.finished for device in devices):
            return
    raise AssertionError(f"the run does not end: {world.federation.round}")


@contextmanager
def opened(
    folder: Path, manifest: Manifest, points: CrashPoints, life: int, **settings: Any
) -> Iterator[RecordedWorld]:
    """A world over this folder, whose prefixes are journalled after a few bytes."""
    with patch.object(uploads, "JOURNAL_EVERY_BYTES", JOURNAL_EVERY_BYTES), points.installed():
        world = RecordedWorld(folder, manifest, points, life, **settings)
        try:
            yield world
        finally:
            world.journal.close()


def delivered(folder: Path) -> set[tuple[str, int]]:
    """``(device, round)`` of every acknowledgement that a device heard."""
    diary = Diary(folder / "diary")
    return {(name, given.round) for name in RANKS for what, given in diary.entries(name) if what == "delivered"}


def merged(world: World) -> list[UploadRow]:
    """What was merged, in all rounds."""
    journal = world.journal
    return [row for r in journal.rounds() for row in journal.uploads(r.number) if row.state == "merged"]


def ending(world: RecordedWorld) -> tuple:
    """What two runs must agree on."""
    versions = world.journal.versions()
    return versions, [world.journal.reports(row.round) for row in versions[1:]]


def stored(folder: Path) -> set[str]:
    """Digests of the objects on disk."""
    return {path.name for path in (folder / "store/objects").glob("??/*")}


def recomputed(world: RecordedWorld, number: int) -> str:
    """Digest of a version's state as the journalled cohort gives it, merged here and now."""
    versions = [
        StoredVersion(
            version=row.version, state=row.state_digest, body=row.body_digest, codec=row.codec, slots=row.slots
        )
        for row in world.journal.versions()
    ]
    cohort = [(row, world.journal.assignment(row.token)) for row in merged(world) if row.round == number]
    job = MergeJob(
        objects=world.objects.root,
        manifest=world.manifest.to_json(),
        base=versions[number - 1],
        earlier=tuple(versions[n] for n in {given.version for _, given in cohort} - {number - 1}),
        updates=tuple(
            StoredUpdate(client=row.client, num_examples=row.num_examples, sha256=row.sha256, assignment=given.document)
            for row, given in cohort
        ),
        round=number,
        seed=0,
    )
    return merge_cohort(job)[0].state


def uncut(
    folder: Path, manifest: Manifest, settings: dict[str, Any], play: Callable[..., None]
) -> tuple[list[str], tuple]:
    """Plays a run that nobody touches: its steps by name, and how it ends."""
    points = CrashPoints()
    with opened(folder, manifest, points, life=0, **settings) as world:
        play(world)
        return points.reached, ending(world)


@contextmanager
def survived(
    folder: Path,
    manifest: Manifest,
    settings: dict[str, Any],
    kills: Sequence[int],
    expected: tuple,
    play: Callable[..., None],
) -> Iterator[RecordedWorld]:
    """Plays a run that is killed as by :func:`killed` on to the end it must have; checks what it leaves on disk."""
    killed(folder, manifest, settings, kills, play)
    with opened(folder, manifest, CrashPoints(), life=len(kills), **settings) as world:
        play(world)
        assert ending(world) == expected
        yield world
        assert list((folder / "store/partial").iterdir()) == []
        assert stored(folder) == live_objects(world.journal, world.objects, world.config.keep_versions)


def survives_each(survives: Callable[[tuple[int, ...]], None], kills: list[tuple[int, ...]], steps: list[str]) -> None:
    """Checks a run once for each of these kills, and tells which one it did not survive."""
    for each in kills:
        try:
            survives(each)
        except Exception as error:
            raise AssertionError(f"killed before {steps[each[0]]!r}, step {each} of {len(steps)}") from error


def killed(
    folder: Path, manifest: Manifest, settings: dict[str, Any], kills: Sequence[int], play: Callable[..., None]
) -> None:
    """Plays a run that is killed before these steps, the first of its first life and so on."""
    context = multiprocessing.get_context("fork")
    for life, at in enumerate(kills):
        child = context.Process(target=run_until_killed, args=(folder, manifest, settings, at, life, play))
        child.start()
        child.join()
        assert child.exitcode in (-signal.SIGKILL, 0)
        assert life or child.exitcode, "the first life has this step"


def run_until_killed(
    folder: Path, manifest: Manifest, settings: dict[str, Any], at: int, life: int, play: Callable[..., None]
) -> None:
    """Goes on with a run and dies before its step ``at``; returns if it has not so many."""
    with opened(folder, manifest, CrashPoints(at=at), life, **settings) as world:
        play(world)
