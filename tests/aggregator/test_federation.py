"""A run as its devices live it: rounds, late ones, deadlines, merges under way, restarts, the end and beyond."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from aggregator.errors import AggregatorError
from aggregator.federation import ELAPSED_EVERY_S
from aggregator.merge import GlobalState
from aggregator.rounds.machine import COMEBACK_S, TAKE_UP_S, Phase
from protocol import messages
from protocol.assignment import Assignment
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.payload import Layout


def code(answer):
    assert isinstance(answer, messages.Nack), answer
    return answer.code


def fetched(device, handout):
    """A hand-out as a device gets it."""
    data = b""
    while len(data) < handout.object_bytes:
        data += bytes(device.say(messages.Get(digest=handout.digest, offset=len(data), length=97)).payload)
    assert hashlib.sha256(data).hexdigest() == handout.digest
    return data


def dense_oracle(world, handouts, updates, weights):
    """``M + Σ p_i ((B̂+dB̂)(A+dA) − B̂A)`` as plain float64 matrices; ``M`` is the state before."""
    layout = Layout.of(world.manifest)
    state, total = world.state(), sum(weights)
    merged = {module.name: state.low_rank[module.name].svd for module in world.manifest.low_rank}
    merged = {name: (svd.U * svd.S) @ svd.Vt for name, svd in merged.items()}
    bias = np.array(state.dense["bias"])
    for handout, update, weight in zip(handouts, updates, weights, strict=True):
        for name in merged:
            B, A = (part.astype(np.float64) for part in layout.factors(handout.slots[: update.rank], name))
            dB, dA = (part.astype(np.float64) for part in layout.factors(update.slots, name))
            merged[name] += weight / total * ((B + dB) @ (A + dA) - B @ A)
        bias = bias + weight / total * update.dense["bias"].astype(np.float64)
    return merged, bias


@pytest.mark.parametrize("codec", list(Codec))
def test_the_merged_state_is_the_weighted_mean_of_what_the_devices_did(new_world, codec):
    world = new_world(cohort_size=3, rounds=3, handout_codec=codec, update_codec=codec)
    layout = Layout.of(world.manifest)
    weights = [1, 10, 300]
    for round_number in range(1, 4):
        devices = [world.device(name) for name in "abc"]
        for device in devices:
            device.ready()
        given = [device.task(rank=rank) for device, rank in zip(devices, (1, 2, 4), strict=True)]
        handouts = [
            layout.decode(fetched(device, each.handout), each.rank, codec)
            for device, each in zip(devices, given, strict=True)
        ]
        data = [device.update(each, size=0.3) for device, each in zip(devices, given, strict=True)]
        updates = [layout.decode(each, task.rank, codec) for each, task in zip(data, given, strict=True)]
        expected, bias = dense_oracle(world, handouts, updates, weights)
        for device, task, each, weight in zip(devices, given, data, weights, strict=True):
            assert isinstance(device.deliver(task, each, num_examples=weight), messages.Ack)
        state = world.state()
        assert world.federation.version.version == round_number
        for name, matrix in expected.items():
            svd = state.low_rank[name].svd
            np.testing.assert_allclose((svd.U * svd.S) @ svd.Vt, matrix, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(state.dense["bias"], bias, rtol=1e-12)


def test_the_order_of_arrival_does_not_change_a_byte(new_world):
    digests = set()
    for order in (0, 1):
        world = new_world(rounds=1)
        given = list(world.assigned().items())
        for device, task in given[::-1] if order else given:
            device.deliver(task, device.update(task))
        digests.add(world.federation.version.state)
    assert len(digests) == 1


def test_a_late_joiner_waits_for_the_next_round(world):
    given = world.assigned()
    late = world.device("c")
    waiting = late.ready()
    assert isinstance(waiting, messages.Wait)
    assert "has its 2 clients" in waiting.reason
    for device, task in given.items():
        device.deliver(task, device.update(task))
    other = next(iter(given))
    other.ready()
    assert late.task().round == 2


def test_whoever_is_too_late_of_more_than_wanted_is_told_that_its_update_is_stale(new_world):
    world = new_world(over_selection=2.0, rounds=2)
    given = world.assigned("abcd")
    first, second, third, fourth = given
    third.offer(given[third], third.update(given[third]))
    for device in (first, second):
        device.deliver(given[device], device.update(given[device]))
    world.poll()
    assert world.federation.version.version == 1
    assert [message.type for message in third.inbox] == ["CREDIT", "NACK"]
    assert code(third.inbox[-1]) is NackCode.STALE
    assert code(third.chunk(given[third], third.update(given[third]))) is NackCode.UNKNOWN
    answer = fourth.offer(given[fourth], fourth.update(given[fourth]))
    assert code(answer) is NackCode.STALE
    assert "closed" in answer.reason
    assert list((world.folder / "store/partial").iterdir()) == []
    assert [row.state for row in world.journal.assignments(1)].count("expired") == 2


def test_an_upload_that_nobody_took_up_again_after_a_restart_leaves_nothing_behind(new_world):
    world = new_world(over_selection=1.5, rounds=1)
    given = {device.key[0]: task for device, task in world.assigned("abc").items()}
    world.device("c").offer(given["c"], world.device("c").update(given["c"]))
    world.restart()
    for name in "ab":
        device = world.device(name)
        device.deliver(given[name], device.update(given[name]))
    assert world.federation.finished
    assert list((world.folder / "store/partial").iterdir()) == []


def test_an_update_that_is_being_checked_when_its_round_closes_is_stale(new_world):
    world = new_world(over_selection=1.5, rounds=2)
    given = world.assigned("abc")
    first, second, third = given
    for device in (first, second):
        device.deliver_all(given[device], device.update(given[device]))
    world.verify.held = True
    third.deliver_all(given[third], third.update(given[third]))
    world.poll()
    assert world.federation.round.number == 2
    world.verify.step()
    world.poll()
    assert code(third.inbox[-1]) is NackCode.STALE
    assert [row.state for row in world.journal.uploads(1)].count("merged") == 2


def test_the_deadline_closes_a_round_with_a_quorum_and_not_a_moment_before(new_world):
    world = new_world(quorum=1, deadline_s=60.0)
    given = world.assigned()
    first = next(iter(given))
    first.deliver(given[first], first.update(given[first]))
    world.poll(after_s=59.9)
    assert world.federation.round.phase is Phase.OPEN
    world.poll(after_s=0.1)
    assert world.federation.version.version == 1


def test_a_task_says_how_long_there_is(new_world):
    world = new_world(deadline_s=60.0)
    given = world.assigned()
    assert [task.deadline_s for task in given.values()] == [60.0, 60.0]
    world.now += 20
    assert next(iter(given)).task().deadline_s == 40.0


def test_a_deadline_without_a_quorum_lets_others_in_and_those_who_gave_up_try_again(new_world):
    world = new_world(deadline_s=60.0)
    given = world.assigned()
    first, second = given
    first.say(messages.Decline(token=given[first].token, reason="busy"))
    world.poll(after_s=60.0)
    assert world.federation.round.phase is Phase.OPEN
    again = first.task()
    assert again == replace(given[first], deadline_s=60.0)
    for device, task in ((first, again), (second, given[second])):
        assert isinstance(device.deliver(task, device.update(task)), messages.Ack)
    assert world.federation.version.version == 1


def test_a_round_without_a_deadline_takes_back_who_declined_after_a_while(world):
    given = world.assigned()
    first = next(iter(given))
    first.say(messages.Decline(token=given[first].token, reason="busy"))
    assert isinstance(first.ready(), messages.Wait)
    world.now += COMEBACK_S
    assert first.task().token == given[first].token
    for device, task in given.items():
        assert isinstance(device.deliver(task, device.update(task)), messages.Ack)
    assert world.federation.version.version == 1


def test_a_refusal_that_is_repeated_after_a_while_gives_the_place_away_again(world):
    given = world.assigned()
    first = next(iter(given))
    bad = b"\xff" * len(first.update(given[first]))
    refused = first.deliver(given[first], bad)
    world.now += COMEBACK_S
    assert first.task().token == given[first].token
    assert first.offer(given[first], bad) == refused
    assert world.federation.round.members[first.key].state == "rejected"
    assert isinstance(world.device("c").ready(), messages.Task)


def test_a_decline_frees_its_place_and_is_idempotent(world):
    given = world.assigned()
    first = next(iter(given))
    decline = messages.Decline(token=given[first].token, reason="out of memory")
    assert first.say(decline) == first.say(decline) == messages.Ack(q=77, ref=given[first].token)
    assert world.journal.assignment(given[first].token).reason == "out of memory"
    assert isinstance(world.device("c").ready(), messages.Task)


def test_a_long_reason_for_declining_still_lets_the_device_be_answered(world):
    given = world.assigned()
    first = next(iter(given))
    first.say(messages.Decline(token=given[first].token, reason="é" * 512))
    assert isinstance(first.ready(), messages.Wait)


def test_nobody_declines_for_another(world):
    first, second = given = world.assigned()
    answer = first.say(messages.Decline(token=given[second].token, reason="x"))
    assert (code(answer), answer.ref) == (NackCode.UNKNOWN, given[second].token)
    assert world.federation.round.members[second.key].state == "assigned"


def test_a_decline_after_delivery_changes_nothing(world):
    given = world.assigned()
    first = next(iter(given))
    first.deliver(given[first], first.update(given[first]))
    assert first.say(messages.Decline(token=given[first].token, reason="x")).type == "ACK"
    assert world.federation.round.submitted == (first.key,)


def test_an_invitation_that_is_not_taken_up_lapses(world):
    first, second, third = (world.device(name) for name in "abc")
    first.ready()
    second.ready()
    assert isinstance(third.ready(), messages.Wait)
    world.poll(after_s=TAKE_UP_S)
    assert isinstance(third.ready(), messages.Task)


def test_devices_are_answered_while_a_merge_is_under_way(world):
    world.merge.held = True
    given = world.assigned()
    for device, task in given.items():
        device.deliver(task, device.update(task))
    world.poll()
    first = next(iter(given))
    assert world.federation.round.phase is Phase.MERGING
    assert world.federation.next_wakeup(world.now) is None
    assert "being merged" in first.ready().reason
    assert isinstance(first.offer(given[first], first.update(given[first])), messages.Ack)
    assert first.say(messages.Ping()).type == "PONG"
    fetched(first, given[first].handout)
    assert code(world.device("c").say(messages.Decline(token="0" * 32, reason=""))) is NackCode.UNKNOWN
    world.poll(after_s=1e6)
    assert world.federation.version.version == 0
    world.merge.step()
    world.poll()
    assert world.federation.version.version == 1
    assert code(first.say(messages.Get(digest=given[first].handout.digest, offset=0, length=9))) is NackCode.UNKNOWN


def test_a_run_ends_with_the_final_adapter_at_each_devices_rank(world):
    world.play(rounds=2)
    assert world.federation.finished
    device = world.device("c")
    answer = device.ready(rank=3)
    assert isinstance(answer, messages.Finished)
    assert (answer.version, answer.rank, answer.handout.slots) == (2, 3, 3)
    Layout.of(world.manifest).decode(fetched(device, answer.handout), 3, Codec.BF16)
    assert world.federation.next_wakeup(world.now) is None


def test_a_finished_run_can_be_extended(world):
    world.play(rounds=2)
    assert world.federation.extend(1) == 3
    world.play()
    assert world.federation.version.version == 3
    assert isinstance(world.device("a").ready(), messages.Finished)
    assert world.journal.get_meta("rounds") == "3"


@pytest.mark.parametrize("rounds", [0, -1])
def test_a_run_is_extended_by_at_least_one_round(world, rounds):
    with pytest.raises(AggregatorError, match="at least 1"):
        world.federation.extend(rounds)
    assert world.federation.config.rounds == 2


def test_a_run_can_start_from_a_state_that_it_was_given(new_world, manifest):
    before = new_world(rounds=1)
    before.play(rank=4)
    warm = new_world(state=before.state().to_bytes(), rounds=1)
    assert warm.state().to_bytes() == before.state().to_bytes()
    first, second = warm.device("a"), warm.device("b")
    first.ready()
    handout = Layout.of(manifest).decode(fetched(second, second.task(rank=4).handout), 4, Codec.BF16)
    np.testing.assert_allclose(handout.dense["bias"], before.state().dense["bias"], rtol=1e-2)
    B, A = Layout.of(manifest).factors(handout.slots, "up")
    svd = before.state().low_rank["up"].svd.truncate(4)
    np.testing.assert_allclose(B @ A, (svd.U * svd.S) @ svd.Vt, atol=1e-2 * svd.norm)


def test_updates_that_change_nothing_keep_the_state_at_zero(new_world):
    world = new_world(rounds=3)
    world.play(rounds=3, size=0.0)
    zero = GlobalState.zeros(world.manifest)
    assert world.federation.version.version == 3
    assert world.state().to_bytes() == zero.to_bytes()


@pytest.mark.parametrize(("codec", "size"), [(Codec.FP16, 1e4), (Codec.BF16, 1e5)])
def test_updates_that_blow_the_state_up_cost_their_rounds_and_not_the_run(new_world, codec, size):
    world = new_world(cohort_size=1, rounds=12, handout_codec=codec, update_norm_max=1e6)
    device = world.device("a")
    for _ in range(10):
        given = device.task()
        assert isinstance(device.deliver(given, device.update(given, size=size)), messages.Ack)
    told = [json.loads(line) for number in range(1, 11) for line in world.journal.reports(number)]
    assert "discarded" in [line["kind"] for line in told]
    before = world.state().to_bytes()
    world.restart()
    device = world.device("b")
    given = device.task()
    assert isinstance(device.deliver(given, device.update(given, size=0.0)), messages.Ack)
    assert world.federation.version.version == 11
    assert world.state().to_bytes() == before


# ---- GET


def test_the_manifest_is_served_in_pieces(world):
    device, document = world.device("a"), world.manifest.to_json()
    got = b"".join(
        bytes(device.say(messages.Get(digest=world.manifest.digest, offset=at, length=50)).payload)
        for at in range(0, len(document), 50)
    )
    assert got == document


def test_an_unknown_object_or_an_offset_behind_the_end_is_said_to_be_so(world):
    given = world.assigned()
    device, task = next(iter(given.items()))
    size = task.handout.object_bytes
    for digest, offset in (
        ("e" * 64, 0),
        (world.federation.version.state, 0),
        (world.federation.version.body, 0),
        (task.handout.digest, size),
        (task.handout.digest, size + 1),
        (world.manifest.digest, 1 << 30),
    ):
        answer = device.say(messages.Get(digest=digest, offset=offset, length=1))
        assert (code(answer), answer.ref) == (NackCode.UNKNOWN, digest)
    assert len(device.say(messages.Get(digest=task.handout.digest, offset=size - 1, length=99)).payload) == 1


def test_a_device_with_the_residual_gets_all_slots_and_trains_its_own(new_world):
    world = new_world(residual_slots=6, cohort_size=1)
    device = world.device("a")
    task = device.task(rank=1, residual=True)
    assert (task.rank, task.handout.slots, task.residual) == (1, 6, True)
    assert Layout.of(world.manifest).decode(fetched(device, task.handout), 6, Codec.BF16).rank == 6
    assert isinstance(device.deliver(task, device.update(task)), messages.Ack)


# ---- time and restarts


def test_a_run_wakes_up_in_time_to_note_its_age(new_world):
    world = new_world(deadline_s=7.0, quorum=1)
    assert world.federation.next_wakeup(world.now) is None
    given = world.assigned()
    assert world.federation.next_wakeup(world.now) == world.now + ELAPSED_EVERY_S
    first = next(iter(given))
    first.deliver(given[first], first.update(given[first]))
    while world.federation.round.phase is Phase.OPEN:
        wakeup = world.federation.next_wakeup(world.now)
        assert wakeup > world.now
        world.now = wakeup
        world.poll()
    assert world.now == 1007.0


def test_downtime_does_not_eat_the_deadline(new_world):
    world = new_world(deadline_s=60.0, quorum=1)
    given = world.assigned()
    first = next(iter(given))
    first.deliver(given[first], first.update(given[first]))
    for _ in range(8):
        world.poll(after_s=5.0)
    world.now += 1e6
    world.restart()
    world.poll(after_s=19.0)
    assert world.federation.round.phase is Phase.OPEN
    assert world.federation.round.deadline(world.config) == world.now + 1.0
    world.poll(after_s=1.0)
    assert world.federation.version.version == 1


def test_a_restart_gives_every_device_the_assignment_it_had(world):
    given = world.assigned()
    tasks = {device.key: task for device, task in given.items()}
    world.restart()
    for name in "ab":
        device = world.device(name)
        assert device.task() == tasks[device.key]
        fetched(device, tasks[device.key].handout)


def test_an_update_sealed_before_a_crash_need_not_be_sent_again(world):
    given = world.assigned()
    device = next(iter(given))
    data = device.update(given[device])
    world.verify.held = True
    device.deliver_all(given[device], data)
    world.verify.step()  # sealed, and nobody has noted it
    world.restart()
    again = world.device(device.key[0])
    assert again.offer(given[device], data) is None
    world.poll()
    assert isinstance(again.inbox[-1], messages.Ack)


POINTS = ("assigned", "offered", "half", "checked", "acknowledged", "closed", "merged", "committed")


def run_with_a_crash(world, point):
    """One round; the aggregator crashes at the point named, and the devices go on as real ones do."""
    given = world.assigned()
    tasks = {device.key[0]: task for device, task in given.items()}
    first, second = given
    data = {device.key[0]: device.update(task) for device, task in given.items()}
    world.merge.held = point in ("closed", "merged")
    if point in ("checked",):
        world.verify.held = True
    if point != "assigned":
        first.offer(tasks["a"], data["a"])
    if point == "half":
        first.chunk(tasks["a"], data["a"], 0, 20)
    if point in ("checked", "acknowledged", "closed", "merged", "committed"):
        first.deliver_all(tasks["a"], data["a"])
        world.poll()
    if point == "checked":
        world.verify.step()  # sealed, and nobody has noted it
    if point in ("closed", "merged", "committed"):
        second.deliver(tasks["b"], data["b"])
        world.poll()
    if point == "merged":
        world.merge.step()  # the objects are there, the version is not committed
    world.restart()
    for name in "ab":
        assert isinstance(world.device(name).deliver(tasks[name], data[name]), messages.Ack)
    world.poll()


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_ends_in_the_same_bytes(new_world, point):
    whole, broken = new_world(rounds=1), new_world(rounds=1)
    whole.play()
    run_with_a_crash(broken, point)
    assert broken.federation.finished
    assert broken.federation.version == whole.federation.version
    assert [row.state for row in broken.journal.uploads(1)] == ["merged", "merged"]
    assert broken.journal.reports(1) == whole.journal.reports(1)


def test_a_restart_between_rounds_changes_nothing(new_world):
    whole, broken = new_world(rounds=3), new_world(rounds=3)
    for _ in range(3):
        whole.play()
        broken.play()
        broken.restart()
    assert broken.federation.version == whole.federation.version


def test_who_declined_before_a_restart_is_not_waited_for_after_it(world):
    given = world.assigned()
    first = next(iter(given))
    first.say(messages.Decline(token=given[first].token, reason="busy"))
    world.restart()
    assert "busy" in world.device("a").ready().reason
    assert isinstance(world.device("c").ready(), messages.Task)


def test_the_assignment_is_journalled_as_it_was_told_but_for_the_time_left(world):
    given = world.assigned()
    for device, task in given.items():
        row = world.journal.assignment_of(1, device.key)
        assert Assignment.from_json(row.document) == replace(task, deadline_s=None)
        assert (row.token, row.state) == (task.token, "open")
