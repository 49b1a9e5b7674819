"""The workers' jobs: picklable values in, files out, and the same files when done again."""

import pickle
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from aggregator.rounds.work import MergeJob, VerifyJob, merge_cohort, verify_upload, version_seed
from protocol.assignment import Assignment
from protocol.codecs import Codec
from protocol.errors import NackCode, RemoteProtocolError
from protocol.payload import AdapterTensors, Layout


@pytest.fixture
def jobs(new_world):
    """The jobs of one round in which two devices delivered, and the world."""
    world = new_world(update_codec=Codec.FP32)
    seen = []
    for executor in (world.verify, world.merge):
        submit = executor.submit
        executor.submit = lambda fn, job, submit=submit: (seen.append(job), submit(fn, job))[1]
    devices = [world.device(name) for name in "ab"]
    for device in devices:
        device.ready()
    for device in devices:
        given = device.task()
        device.deliver(given, device.update(given))
    return world, [job for job in seen if isinstance(job, VerifyJob)], next(j for j in seen if isinstance(j, MergeJob))


def test_every_job_can_be_sent_to_another_process(jobs):
    _, verify, merge = jobs
    for job in (*verify, merge):
        assert pickle.loads(pickle.dumps(job)) == job


def test_a_merge_done_again_gives_the_same_version_and_report(jobs):
    world, _, merge = jobs
    version, report = merge_cohort(merge)
    assert version == world.federation.version
    assert list(report) == world.journal.reports(1)


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
