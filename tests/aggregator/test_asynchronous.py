"""Asynchronous rounds from the first message to the next version: nobody waits for the slowest, nothing is lost."""

import math

import numpy as np
import pytest

from aggregator.config import Mode
from aggregator.merge import ClientUpdate, GlobalState, merge_round
from aggregator.rounds.machine import MemberState, Phase
from aggregator.status import run_status
from aggregator.store.retention import needed_objects
from aggregator.store.rows import AssignmentState, UploadState
from protocol import messages
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.payload import Layout


@pytest.fixture
def buffered(new_world):
    """Makes worlds whose buffers hold two updates."""
    return lambda **settings: new_world(**{"mode": Mode.ASYNC, "rounds": 9, "keep_versions": 0, **settings})


def deliver(device, given):
    answer = device.deliver(given, device.update(given))
    assert isinstance(answer, messages.Ack), answer


def pass_versions(world, count, names="ab"):
    """Lets two quick devices make so many versions."""
    for _ in range(count):
        for device in [world.device(name) for name in names]:
            deliver(device, device.task())


def fetched(device, given):
    """The hand-out of an assignment, decoded."""
    piece = device.say(messages.Get(digest=given.handout.digest, offset=0, length=1 << 20))
    assert isinstance(piece, messages.Data), piece
    return Layout.of(device.world.manifest).decode(bytes(piece.payload), given.handout.slots, given.handout.codec)


def test_a_device_is_given_work_when_it_asks_and_the_live_version(buffered):
    world = buffered()
    slow = world.device("slow")
    assert (slow.task().round, slow.task().version) == (1, 0)
    pass_versions(world, 2)
    assert world.federation.version.version == 2
    assert (slow.task().round, slow.task().version) == (1, 0), "it keeps what it has"
    late = world.device("late").task()
    assert (late.round, late.version) == (3, 2)


def test_a_slow_update_counts_against_what_its_device_was_handed_and_less(buffered):
    world = buffered(update_codec=Codec.FP32, handout_codec=Codec.FP32)
    slow = world.device("slow")
    old = slow.task(rank=4)
    pass_versions(world, 3)
    before, handed = world.state(), fetched(slow, old)
    quick = world.device("a")
    fresh = quick.task(rank=4)
    live = fetched(quick, fresh)
    layout, updates = Layout.of(world.manifest), []
    for device, given, staleness in ((slow, old, 3), (quick, fresh, 0)):
        data = device.update(given)
        tensors = layout.decode(data, 4, Codec.FP32)
        updates.append(ClientUpdate(client=device.key, num_examples=10, rank=4, tensors=tensors, staleness=staleness))
        assert isinstance(device.deliver(given, data), messages.Ack)
    expected, _ = merge_round(before, world.manifest, live, updates, stale={3: handed})
    assert world.state().to_bytes() == expected.to_bytes()
    bias = 0.5 * updates[0].tensors.dense["bias"] / math.sqrt(1 + 3) + 0.5 * updates[1].tensors.dense["bias"]
    np.testing.assert_allclose(world.state().dense["bias"] - before.dense["bias"], bias, atol=1e-9)


def test_an_update_that_is_too_far_behind_is_refused_and_its_device_asks_anew(buffered):
    world = buffered(staleness_max=1)
    slow, slower = world.device("slow"), world.device("slower")
    given, other = slow.task(), slower.task()
    data = slower.update(other)
    slower.offer(other, data)
    slower.chunk(other, data, 0, 50)
    pass_versions(world, 1)
    assert fetched(slow, given)
    pass_versions(world, 1)
    told = slower.inbox[-1]
    assert (told.type, told.code) == ("NACK", NackCode.STALE)
    assert "more than 1 versions behind" in told.reason
    assert "ask for work again" in told.reason
    answer = slow.offer(given, slow.update(given))
    assert (answer.type, answer.code) == ("NACK", NackCode.STALE)
    assert "more than 1 versions behind" in answer.reason
    assert isinstance(slow.say(messages.Get(digest=given.handout.digest, offset=0, length=9)), messages.Nack)
    assert slow.task().version == 2
    assert list((world.folder / "store/partial").iterdir()) == []


def test_an_update_of_the_greatest_staleness_is_still_taken(buffered):
    world = buffered(staleness_max=1)
    slow = world.device("slow")
    given = slow.task()
    pass_versions(world, 1)
    deliver(slow, given)
    assert world.federation.round.submitted == (slow.key,)


def test_what_arrives_while_a_buffer_is_merged_is_acknowledged_and_counts_in_the_next(buffered):
    world = buffered()
    devices = [world.device(name) for name in "abcd"]
    given = [device.task() for device in devices]
    world.merge.held = True
    for device, task in zip(devices[:3], given, strict=False):
        deliver(device, task)
    assert world.federation.round.phase is Phase.MERGING
    assert isinstance(devices[0].ready(), messages.Wait)
    assert devices[3].task() == given[3], "who is at work goes on"
    world.merge.release()
    world.poll()
    merged = {row.client[0]: (row.round, row.state) for number in (1, 2) for row in world.journal.uploads(number)}
    assert merged == {"a": (1, "merged"), "b": (1, "merged"), "c": (2, "durable")}
    deliver(devices[3], given[3])
    assert world.federation.version.version == 2


def test_a_buffer_that_filled_during_a_merge_is_merged_right_after_it(buffered):
    world = buffered()
    devices = [world.device(name) for name in "abcde"]
    given = [device.task() for device in devices]
    world.merge.held = True
    for device, task in zip(devices, given, strict=True):
        deliver(device, task)
    world.merge.release()
    world.poll()
    assert world.federation.version.version == 2
    assert [len(world.journal.uploads(number)) for number in (1, 2)] == [2, 3], "all that came early are in"


def test_no_merge_begins_before_what_nothing_needs_is_gone(buffered):
    world = buffered()
    devices = [world.device(name) for name in "abcd"]
    given = [device.task() for device in devices]
    world.merge.held = True
    for device, task in zip(devices, given, strict=True):
        deliver(device, task)
    world.merge.held, world.verify.held = False, True
    world.merge.step()
    world.poll()
    assert (world.federation.version.version, world.federation.round.phase) == (1, Phase.OPEN)
    world.verify.step()
    assert world.federation.next_wakeup(world.now) == world.now
    world.poll()
    assert world.federation.version.version == 2


def test_an_update_that_is_being_checked_when_a_version_is_committed_is_kept(buffered):
    world = buffered()
    slow = world.device("slow")
    given = slow.task()
    quick = [world.device(name) for name in "ab"]
    tasks = [device.task() for device in quick]
    world.merge.held = True
    for device, task in zip(quick, tasks, strict=True):
        deliver(device, task)
    assert slow.deliver_all(given, slow.update(given)) is None  # sealed, and not looked at yet
    world.merge.release()
    future = next(iter(world.federation._intake._checking.values())).future
    future.done = lambda: False  # the loop has not noticed
    world.poll()
    assert world.federation.version.version == 1
    del future.done
    world.poll()
    (row,) = world.journal.uploads(2)
    assert row.state is UploadState.DURABLE
    world.objects.check(row.sha256)


def test_what_updates_are_against_is_kept_as_long_as_they_may_come(buffered):
    world = buffered()
    slow = world.device("slow")
    given = slow.task()
    pass_versions(world, 2)
    bodies = [row.body_digest for row in world.journal.versions()]
    assert [world.objects.has(digest) for digest in bodies] == [True, False, True]
    deliver(slow, given)
    assert world.objects.has(bodies[0]), "its update is not merged yet"
    deliver(world.device("a"), world.device("a").task())
    assert [world.objects.has(digest) for digest in bodies] == [False, False, False]
    kept = {path.name for path in (world.folder / "store/objects").glob("??/*")}
    assert kept == needed_objects(world.journal, 0)


def test_a_restart_takes_everything_up_where_it_was(buffered):
    world = buffered()
    slow, early = world.device("slow"), world.device("early")
    given, task = slow.task(), early.task()
    pass_versions(world, 2)
    world.merge.held = True
    for device in [world.device(name) for name in "ab"]:
        deliver(device, device.task())
    deliver(early, task)
    before = world.federation.round
    world.restart()
    world.federation._merging._worker.held = True
    after = world.federation.round
    assert (after.number, after.version, after.phase, after.filling) == (3, 2, Phase.MERGING, 4)
    assert {k: (m.state, m.round) for k, m in after.members.items()} == {
        k: (m.state, m.round) for k, m in before.members.items()
    }
    world.poll()
    world.merge.step()
    world.poll()
    assert world.federation.round.submitted == (early.key,)
    world.merge.held = False
    slow = world.device("slow")
    assert slow.task() == given
    assert fetched(slow, given)
    deliver(slow, given)
    assert world.federation.version.version == 4


def test_a_restart_gives_each_device_its_whole_time_anew(buffered):
    world = buffered(deadline_s=60.0)
    device = world.device("a")
    assert device.task().deadline_s == 60.0
    world.now += 40.0
    assert device.task().deadline_s == 20.0
    world.restart()
    assert world.device("a").task().deadline_s == 60.0
    assert world.federation.next_wakeup(world.now) == world.now + 60.0


def test_a_silent_device_gives_its_place_away_and_may_still_deliver(buffered):
    world = buffered(concurrency=1, deadline_s=60.0)
    slow, other = world.device("slow"), world.device("other")
    given = slow.task()
    assert isinstance(other.ready(), messages.Wait)
    world.poll(after_s=60.0)
    deliver(other, other.task())
    deliver(slow, given)
    assert world.federation.version.version == 1


def test_who_declines_gets_new_work_with_the_next_version(buffered):
    world = buffered()
    first = world.device("first")
    given = first.task()
    first.say(messages.Decline(token=given.token, reason="on battery"))
    assert isinstance(first.ready(), messages.Wait)
    world.poll(after_s=301.0)
    assert first.task().token == given.token, "the same version, the same assignment"
    first.say(messages.Decline(token=given.token, reason="on battery"))
    pass_versions(world, 1)
    again = first.task()
    assert (again.version, again.token != given.token) == (1, True)


def test_a_garbled_update_costs_its_own_device_alone(buffered):
    world = buffered()
    bad = world.device("bad")
    given = bad.task()
    pass_versions(world, 1)
    answer = bad.deliver(given, b"\xff" * len(bad.update(given)))
    assert (answer.type, answer.code) == ("NACK", NackCode.SHAPE)
    assert world.journal.assignment(given.token).state is AssignmentState.REJECTED
    pass_versions(world, 1)
    assert bad.task().version == 2


@pytest.mark.parametrize("delivered", [False, True])
def test_a_revoked_device_is_out_and_what_it_delivered_stays(buffered, delivered):
    world = buffered()
    slow = world.device("slow")
    world.journal.enrol_client(slow.key, "slow", 0.0)
    given = slow.task()
    if delivered:
        deliver(slow, given)
    world.journal.revoke_client(slow.key)
    world.federation.revoked(slow.key, world.now)
    expected = MemberState.SUBMITTED if delivered else MemberState.DECLINED
    assert world.federation.round.members[slow.key].state is expected
    pass_versions(world, 2)
    assert world.federation.round.in_state(MemberState.ASSIGNED, MemberState.LATE) == ()


def test_a_run_ends_with_the_last_buffer_and_whoever_is_at_work_is_told(buffered):
    world = buffered(rounds=2)
    slow = world.device("slow")
    given = slow.task()
    pass_versions(world, 2)
    assert world.federation.finished
    answer = slow.offer(given, slow.update(given))
    assert (answer.type, answer.code) == ("NACK", NackCode.STALE)
    assert isinstance(slow.ready(), messages.Finished)
    assert world.journal.open_assignments() == []
    assert world.federation.next_wakeup(world.now) is None
    world.federation.extend(1)
    assert slow.task().version == 2


def test_the_journal_says_what_each_assignment_is_against(buffered):
    world = buffered()
    slow = world.device("slow")
    given = slow.task()
    pass_versions(world, 2)
    deliver(slow, given)
    (row,) = world.journal.uploads(3)
    assert (row.client, row.round, world.journal.assignment(row.token).version) == (slow.key, 3, 0)


def test_updates_that_change_nothing_keep_the_state_at_zero(buffered):
    world = buffered()
    slow = world.device("slow")
    given = slow.task()
    for device in [world.device(name) for name in "ab"]:
        task = device.task()
        assert isinstance(device.deliver(task, device.update(task, size=0.0)), messages.Ack)
    assert isinstance(slow.deliver(given, slow.update(given, size=0.0)), messages.Ack)
    assert world.state().to_bytes() == GlobalState.zeros(world.manifest).to_bytes()


def test_the_status_says_who_is_at_work_and_how_far_behind(buffered):
    world = buffered()
    slow = world.device("slow")
    slow.task()
    pass_versions(world, 2)
    names = {slow.key: "phone", world.device("b").key: "tablet"}
    found = run_status(world.federation, world.hub.devices, names, world.now)
    assert (found.phase, found.round, found.version, found.deadline_in_s) == ("open", 3, 2, None)
    assert found.waiting_for == (
        "updates: 0 of 2 are in the buffer; at work: phone (assigned, staleness 2, seen 0 s ago)"
    )
    assert {row["name"]: row["staleness"] for row in found.devices} == {"phone": 2, "tablet": None}
