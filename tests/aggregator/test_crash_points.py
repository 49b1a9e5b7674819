"""A kill at every step of a run: it ends as the run that nobody touched, and no update is lost, doubled or redone."""

import random
import sqlite3
from pathlib import Path

import pytest

from aggregator.errors import StoreCorrupt
from aggregator.store.journal import Journal
from aggregator.store.objects import ObjectStore
from tests.aggregator.crash_points import CrashPoints
from tests.aggregator.crashing_run import delivered, merged, opened, play, recomputed, survived, survives_each, uncut

# A fork in a process with threads is what Python 3.12 warns of. The child here takes no lock of theirs: it computes,
# writes files, and dies.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")

DELIVERING = ("a", "b", "c")
SHORT, LONG = {"rounds": 1, "keep_versions": 0}, {"rounds": 3, "keep_versions": 1}
EVERYTHING_KEPT = {"rounds": 3, "keep_versions": None}


def survives(folder: Path, manifest, settings, kills: tuple[int, ...], expected: tuple) -> None:
    """Plays a run that is killed before these steps, and checks its end."""
    with survived(folder, manifest, settings, kills, expected, play) as world:
        everybody = {(name, number + 1) for name in DELIVERING for number in range(world.config.rounds)}
        assert sorted((row.client.rstrip("_"), row.round) for row in merged(world)) == sorted(everybody)
        assert delivered(folder) == everybody
        if world.config.keep_versions:
            assert recomputed(world, world.config.rounds) == world.federation.version.state


EVERY_KIND = {
    *("commit add_version", "commit open_round", "commit add_assignment", "commit add_upload", "commit upload_prefix"),
    *("commit upload_durable", "commit upload_rejected", "commit settle_assignment", "commit round_elapsed"),
    *("commit close_round", "commit commit_round", "posix_fallocate upload", "pwrite upload", "replace upload"),
    *(
        "unlink upload",
        "unlink object",
        "posix_fallocate new object",
        "pwrite new object",
        "replace new object",
        "mkdir folder",
    ),
    *("answer TASK", "answer CREDIT", "answer ACK", "answer NACK", "answer FINISHED"),
}


def test_a_run_that_nobody_touches_ends_as_its_journalled_cohorts_have_it(folders, manifest):
    _, collected = uncut(folders(), manifest, LONG, play)
    _, whole = uncut(folder := folders(), manifest, EVERYTHING_KEPT, play)
    assert collected == whole
    with opened(folder, manifest, CrashPoints(), life=1, **EVERYTHING_KEPT) as world:
        again = [recomputed(world, number) for number in range(1, world.config.rounds + 1)]
        assert again == [row.state_digest for row in world.journal.versions()[1:]]


@pytest.mark.parametrize("part", range(2))
def test_a_round_killed_at_any_step_ends_as_if_it_had_not_been(folders, manifest, part):
    steps, expected = uncut(folders(), manifest, SHORT, play)
    assert set(steps) >= EVERY_KIND
    kills = [(at,) for at in range(part, len(steps), 2)]
    survives_each(lambda each: survives(folders(), manifest, SHORT, each, expected), kills, steps)


def test_a_run_killed_again_while_it_recovers_ends_as_if_it_had_not_been(folders, manifest):
    steps, expected = uncut(folders(), manifest, LONG, play)
    stream = random.Random(0)
    kills = [(stream.randrange(len(steps)), stream.randrange(20), stream.randrange(60)) for _ in range(8)]
    survives_each(lambda each: survives(folders(), manifest, LONG, each, expected), kills, steps)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_a_run_killed_at_any_step_of_any_round_ends_as_if_it_had_not_been(folders, manifest, part):
    steps, expected = uncut(folders(), manifest, LONG, play)
    stream = random.Random(part)
    kills = [(at,) for at in range(part, len(steps), 4)]
    kills += [(at, stream.randrange(100)) for (at,) in kills]
    survives_each(lambda each: survives(folders(), manifest, LONG, each, expected), kills, steps)


# ---- that the test can fail


def late_commit(monkeypatch) -> None:
    """An update is acknowledged before it is committed."""
    commit, close, waiting = Journal.upload_durable, Journal.close_round, []

    def closing(journal, number, uploads, **options):
        for upload in waiting:
            commit(journal, upload)
        waiting.clear()
        return close(journal, number, [row.id for row in journal.uploads(number) if row.state == "durable"], **options)

    monkeypatch.setattr(Journal, "upload_durable", lambda journal, upload, number: waiting.append(upload))
    monkeypatch.setattr(Journal, "close_round", closing)


def torn_commit(monkeypatch) -> None:
    """A version is committed before its round is."""
    commit = Journal.commit_round

    def torn(journal, number, version, report):
        journal.add_version(version)
        journal._db.execute("CREATE TEMP TRIGGER twice BEFORE INSERT ON version BEGIN SELECT RAISE(IGNORE); END")
        try:
            commit(journal, number, version, report)
        finally:
            journal._db.execute("DROP TRIGGER twice")

    monkeypatch.setattr(Journal, "commit_round", torn)


def late_object(monkeypatch) -> None:
    """An update is committed before its file has its place."""
    move_in, view, waiting = ObjectStore._move_in, ObjectStore.view, []

    def moving(store, path, digest):
        waiting.append((path, digest)) if path.name.isalnum() else move_in(store, path, digest)

    def viewing(store, digest):
        while waiting:
            move_in(store, *waiting.pop())
        return view(store, digest)

    monkeypatch.setattr(ObjectStore, "_move_in", moving)
    monkeypatch.setattr(ObjectStore, "view", viewing)
    monkeypatch.setattr("aggregator.store.objects.sync_folder", lambda path: None)


@pytest.mark.parametrize(("mutate", "later"), [(late_commit, 1), (late_object, 0)])
def test_an_acknowledgement_too_early_is_seen(folders, manifest, monkeypatch, mutate, later):
    mutate(monkeypatch)
    steps, expected = uncut(folders(), manifest, SHORT, play)
    first_delivery = [at for at, name in enumerate(steps) if name == "answer ACK"][1]  # after the refusal's
    with pytest.raises((AssertionError, StoreCorrupt)):
        survives(folders(), manifest, SHORT, (first_delivery + later,), expected)


def test_a_merge_committed_in_two_steps_is_seen(folders, manifest, monkeypatch):
    torn_commit(monkeypatch)
    steps, expected = uncut(folders(), manifest, SHORT, play)
    with pytest.raises((AssertionError, sqlite3.IntegrityError, StoreCorrupt)):
        survives(folders(), manifest, SHORT, (steps.index("commit torn"),), expected)
