"""The workers' jobs: picklable values in, files out, and the same files when done again."""

import errno
import pickle
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from hashlib import sha256

import numpy as np
import pytest

from aggregator.errors import StoreFull
from aggregator.federation import Executors
from aggregator.merge.parallel import merge_seconds
from aggregator.merge.strategies import StrategyName
from aggregator.rounds.work import (
    PARALLEL_FROM_S,
    VerifyJob,
    merge_cohort,
    verify_upload,
    version_seed,
)
from aggregator.workers.processes import process_pool
from protocol.assignment import Assignment
from protocol.codecs import Codec
from protocol.errors import NackCode, RemoteProtocolError
from protocol.manifest import LowRankModule
from protocol.payload import AdapterTensors, Layout


@pytest.fixture
def jobs(new_world):
    """The jobs of one round in which two devices delivered, and the world."""
    world = new_world(update_codec=Codec.FP32)
    world.play()
    return world, [job for job in world.verify.jobs if isinstance(job, VerifyJob)], world.merge.jobs[0]


def test_every_job_can_be_sent_to_another_process(jobs):
    _, verify, merge = jobs
    for job in (*verify, merge):
        assert pickle.loads(pickle.dumps(job)) == job


def test_a_merge_done_again_gives_the_same_version_and_report(jobs):
    world, _, merge = jobs
    version, report = merge_cohort(merge)
    assert version == world.federation.version
    assert list(report) == world.journal.reports(1)


def test_a_merge_leaves_nothing_in_its_scratch(jobs):
    world, _, merge = jobs
    left = world.objects.root / "scratch" / f"round-{merge.round}"
    left.mkdir(parents=True)
    (left / "of one that was killed").write_bytes(b"x")
    merge_cohort(merge)
    assert not left.exists()


def test_a_start_clears_what_a_killed_merge_left_in_the_scratch(jobs):
    world, _, _ = jobs
    left = world.objects.root / "scratch" / "round-1"
    left.mkdir(parents=True)
    (left / "file").write_bytes(b"x")
    world.restart()
    assert not left.exists()


def test_a_scratch_without_room_is_a_full_disk_and_tried_again_and_not_a_failed_one(jobs, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    _, _, merge = jobs
    monkeypatch.setattr("aggregator.merge.scratch.Scratch.empty", full)
    with pytest.raises(StoreFull, match="free some space"):
        merge_cohort(merge)


@pytest.fixture(scope="module")
def two_processes():
    with process_pool(2) as pool:
        yield pool


@pytest.mark.parametrize("strategy", ["delta", "hlora", "raflora", "zero-padding", "hetlora", "fedit"])
def test_a_merge_by_processes_gives_the_bits_of_the_one_without(new_world, monkeypatch, two_processes, strategy):
    world = new_world(strategy=StrategyName(strategy), rounds=2)
    world.play(rounds=2, size=0.5)
    last = world.merge.jobs[-1]
    asked = []
    monkeypatch.setattr("aggregator.rounds.work.PARALLEL_FROM_S", 0.0)
    monkeypatch.setattr(
        "aggregator.rounds.work.process_pool", lambda n: (asked.append(n), nullcontext(two_processes))[1]
    )
    version, report = merge_cohort(replace(last, workers=64))
    assert asked == [2], "no more than modules"
    assert version == world.federation.version
    assert list(report) == world.journal.reports(2)
    assert list((world.objects.root / "scratch").iterdir()) == []


def test_a_large_merge_by_one_worker_needs_no_process_and_gives_the_same_bits(jobs, monkeypatch):
    world, _, merge = jobs
    monkeypatch.setattr("aggregator.rounds.work.PARALLEL_FROM_S", 0.0)
    monkeypatch.setattr("aggregator.rounds.work.process_pool", lambda _: pytest.fail("one worker is at hand"))
    assert merge_cohort(replace(merge, workers=1))[0] == world.federation.version


def test_the_daemons_merges_may_use_the_processes_that_it_was_given(new_world, monkeypatch):
    monkeypatch.setattr("tests.aggregator.world.Executors", partial(Executors, merge_workers=3))
    world = new_world()
    world.play()
    assert world.merge.jobs[0].workers == 3


class Wide:
    """A merge of this many terms in every module, of a decoder's size."""

    def __init__(self, manifest, terms):
        square = LowRankModule(name="square", out_features=4096, in_features=4096)
        self.manifest = replace(manifest, low_rank=tuple(replace(square, name=f"{i}") for i in range(7)))
        self.width = lambda _: terms


def test_processes_are_started_where_their_start_pays(jobs, monkeypatch):
    world, _, merge = jobs
    monkeypatch.setattr("aggregator.rounds.work.process_pool", lambda _: pytest.fail("processes for milliseconds"))
    merge_cohort(replace(merge, workers=8))
    assert merge_seconds(Wide(world.manifest, 64), 16) < PARALLEL_FROM_S < merge_seconds(Wide(world.manifest, 3000), 16)


def test_a_check_done_again_after_a_crash_finds_the_object(jobs):
    world, (first, _), _ = jobs
    verify_upload(first)
    assert world.objects.path(first.sha256).exists()


def uploaded(world, job, tensors):
    """The job for another update, whose part file is complete."""
    given = Assignment.from_json(job.assignment)
    data = given.update_layout(world.manifest).encode(tensors, given.update_codec)
    name = "e" * 64
    with world.objects.partial(name, len(data)) as part:
        part.write(0, data)
    return replace(job, upload=name, sha256=sha256(data).hexdigest())


def tensors(world, value):
    """An update that has this value everywhere, and how many values those are."""
    zeros = Layout.of(world.manifest).zeros(2)
    filled = AdapterTensors({"bias": zeros.dense["bias"] + np.float32(value)}, zeros.slots + np.float32(value))
    return filled, zeros.slots.size + zeros.dense["bias"].size


def test_the_bound_on_the_norm_counts_every_value(jobs):
    world, (job, _), _ = jobs
    update, count = tensors(world, 2.0)
    norm = 2.0 * np.sqrt(count)
    verify_upload(replace(uploaded(world, job, update), norm_max=norm * 1.0001))
    with pytest.raises(RemoteProtocolError, match="diverge") as caught:
        verify_upload(replace(uploaded(world, job, update), norm_max=norm * 0.9999))
    assert caught.value.code is NackCode.NORM
    assert not world.objects.has_partial("e" * 64)


def test_every_version_has_fresh_rows_of_its_own():
    seeds = {version_seed(run, version) for run in range(20) for version in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 1 << 63 for seed in seeds)
