"""A merge that cannot be done now: the run goes on answering, says what is wrong, and merges when it can."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from aggregator.errors import StoreFull
from aggregator.federation import Executors, Federation
from aggregator.hub import Hub
from aggregator.rounds.machine import Phase
from aggregator.status import run_status
from aggregator.store.journal import Journal
from aggregator.workers.executors import worker_executors

PATIENCE_S = 30.0


@pytest.fixture
def pool() -> Iterator[Executors]:
    """The daemon's real workers."""
    with worker_executors(lambda: None) as executors:
        yield executors


def attach(world, pool: Executors) -> None:
    """Has a world's merges done by a real process."""
    executors = Executors(verify=world.verify, merge=pool.merge)
    world.federation = Federation(world.config, world.manifest, world.journal, world.objects, executors, world.now)
    world.hub = Hub(world.federation, world.standing.get, epoch="epoch")


def settle(world, pool: Executors) -> None:
    """Waits until the worker has done, or died over, what it was given before."""
    done: Future = pool.merge.submit(os.getpid)
    done.exception(PATIENCE_S)
    world.poll()


def test_a_worker_killed_in_the_middle_of_a_merge_is_replaced_and_the_merge_done_again(new_world, pool):
    whole, world = new_world(rounds=2), new_world(rounds=2)
    whole.play(rounds=2)
    attach(world, pool)
    worker = pool.merge.submit(os.getpid).result(PATIENCE_S)
    os.kill(worker, signal.SIGSTOP)  # it will be in the middle of the merge for as long as we like
    world.play()
    assert world.federation.round.phase is Phase.MERGING
    os.kill(worker, signal.SIGKILL)
    settle(world, pool)
    assert "BrokenProcessPool" in world.federation.merge_failure.reason
    world.poll(after_s=world.federation.next_wakeup(world.now) - world.now)
    settle(world, pool)
    assert world.federation.version.version == 1
    assert pool.merge.submit(os.getpid).result(PATIENCE_S) != worker
    world.play()
    settle(world, pool)
    assert world.federation.finished
    assert world.federation.version == whole.federation.version


def test_a_worker_that_died_while_it_was_idle_is_replaced_unnoticed(pool):
    worker = pool.merge.submit(os.getpid).result(PATIENCE_S)
    os.kill(worker, signal.SIGKILL)
    while isinstance(pool.merge.submit(os.getpid).exception(PATIENCE_S), BrokenProcessPool):
        pass  # its death was not noticed yet
    assert pool.merge.submit(os.getpid).result(PATIENCE_S) != worker


def test_while_merges_fail_devices_are_answered_and_the_operator_is_told(world, monkeypatch):
    def full(job):
        raise StoreFull("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("aggregator.rounds.merging.merge_cohort", full)
        first, _ = world.play()
        for _ in range(3):
            world.poll(after_s=world.federation.next_wakeup(world.now) - world.now)
    assert world.federation.version.version == 0
    assert "being merged" in first.ready().reason
    told = run_status(world.federation, {}, {}, world.now).waiting_for
    assert told == (
        "the merge of 2 updates, which failed 4 times (StoreFull: the disk is full); the next try is in 8 s"
    )
    world.poll(after_s=7.9)
    assert world.federation.version.version == 0
    world.poll(after_s=0.1)
    assert world.federation.version.version == 1
    assert world.federation.merge_failure is None


def test_a_journal_that_has_no_room_for_the_commit_gets_it_later(world, monkeypatch):
    def full(*_):
        raise StoreFull("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "commit_round", full)
        world.play()
        assert world.federation.version.version == 0
        assert world.federation.round.phase is Phase.MERGING
    world.poll(after_s=1.0)
    assert world.federation.version.version == 1


def test_a_restart_tries_a_failed_merge_at_once(world, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("aggregator.rounds.merging.merge_cohort", lambda job: 1 / 0)
        world.play()
        assert world.federation.merge_failure is not None
    world.restart()
    assert world.federation.next_wakeup(world.now) == world.now
    world.poll()
    assert world.federation.version.version == 1
