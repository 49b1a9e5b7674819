"""Updates on their way in, as devices see it: offers, chunks, refusals, acknowledgements."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from aggregator.errors import StoreFull
from aggregator.intake.updates import OFFERS_MAX
from protocol import messages
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.identity import upload_id
from protocol.manifest import BaseModel, DenseTensor, Manifest, Quantization, Task, TaskKind


@pytest.fixture
def pair(world):
    """Two devices with their assignments."""
    first, second = world.device("a"), world.device("b")
    first.ready()
    given = second.task()
    return first, first.task(), second, given


def code(answer):
    assert isinstance(answer, messages.Nack), answer
    return answer.code


def files(world):
    return sorted(path.name for path in (world.folder / "store/partial").iterdir())


def test_an_update_that_is_all_here_and_sound_is_acknowledged_once_it_is_durable(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    world.verify.held = True
    assert first.deliver_all(given, data) is None
    world.poll()
    assert first.inbox == []
    assert world.journal.uploads(1)[0].state == "receiving"
    world.verify.step()
    world.poll()
    upload = upload_id("run", 1, first.key, given.token, hashlib.sha256(data).hexdigest())
    assert first.inbox == [messages.Ack(q=77, ref=upload)]
    assert world.journal.upload(upload).state == "durable"
    assert bytes(world.objects.view(hashlib.sha256(data).hexdigest())) == data
    assert world.federation.round.submitted == (first.key,)
    assert files(world) == []


def test_a_lost_acknowledgement_can_be_had_again_without_a_change(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    acknowledged = first.deliver(given, data)
    before = world.journal.uploads(1), world.federation.round
    assert first.offer(given, data) == acknowledged
    first.hello()
    assert first.offer(given, data) == acknowledged
    assert (world.journal.uploads(1), world.federation.round) == before


def test_an_update_is_acknowledged_again_after_its_round_is_merged(world, pair):
    first, given, second, other = pair
    data = first.update(given)
    first.deliver(given, data)
    second.deliver(other, second.update(other))
    assert world.federation.version.version == 1
    digest = world.federation.version.state
    assert isinstance(first.offer(given, data), messages.Ack)
    assert code(first.chunk(given, data)) is NackCode.UNKNOWN
    world.poll()
    assert world.federation.version.state == digest
    assert world.federation.round.number == 2


def test_an_offer_while_its_update_is_being_checked_is_answered_when_the_check_ends(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    world.verify.held = True
    first.deliver_all(given, data)
    assert first.offer(given, data) is None
    assert first.chunk(given, data) is None
    world.verify.step()
    world.poll()
    assert [message.type for message in first.inbox] == ["ACK"]


@pytest.mark.parametrize("token", ["f" * 32, "another's"])
def test_an_offer_needs_a_token_of_its_own(world, pair, token):
    first, given, _, other = pair
    wrong = replace(given, token=other.token if token == "another's" else token)
    before = world.federation.round
    assert code(first.offer(wrong, first.update(given))) is NackCode.UNKNOWN
    assert world.federation.round == before
    assert world.journal.uploads(1) == []


def test_an_upload_id_is_computed_again_and_not_believed(world, pair):
    first, given, second, _ = pair
    data = first.update(given)
    foreign = upload_id("run", 1, second.key, given.token, hashlib.sha256(data).hexdigest())
    answer = first.offer(given, data, upload=foreign)
    assert code(answer) is NackCode.MALFORMED
    assert "does not follow" in answer.reason
    assert world.journal.uploads(1) == []
    assert isinstance(first.deliver(given, data), messages.Ack)


def test_another_update_after_one_is_durable_is_a_conflict_and_the_first_one_counts(world, pair):
    first, given, *_ = pair
    first.deliver(given, first.update(given))
    assert code(first.offer(given, first.update(given, seed=1))) is NackCode.CONFLICT
    assert world.federation.round.submitted == (first.key,)


@pytest.mark.parametrize("changes", [{"size": 1}, {"num_examples": 0}])
def test_no_bad_offer_undoes_what_was_acknowledged(world, pair, changes):
    first, given, *_ = pair
    first.deliver(given, first.update(given))
    assert code(first.offer(given, first.update(given, seed=1), **changes)) is NackCode.CONFLICT
    assert world.federation.round.submitted == (first.key,)
    assert world.journal.assignment(given.token).state == "submitted"


def test_another_update_while_one_is_being_checked_is_a_conflict(world, pair):
    first, given, *_ = pair
    world.verify.held = True
    first.deliver_all(given, first.update(given))
    assert code(first.offer(given, first.update(given, seed=1), size=1)) is NackCode.CONFLICT
    world.verify.step()
    world.poll()
    assert world.federation.round.submitted == (first.key,)


def test_an_unfinished_update_gives_way_to_a_later_one(world, pair):
    first, given, *_ = pair
    old, new = first.update(given), first.update(given, seed=1)
    first.offer(given, old)
    first.chunk(given, old, 0, 10)
    assert isinstance(first.deliver(given, new), messages.Ack)
    assert code(first.chunk(given, old, 10)) is NackCode.UNKNOWN
    assert [row.state for row in world.journal.uploads(1)].count("durable") == 1
    assert files(world) == []


def test_a_device_cannot_fill_the_journal_with_offers(world, pair):
    first, given, *_ = pair
    answers = [first.offer(given, first.update(given, seed=seed)) for seed in range(OFFERS_MAX + 20)]
    assert sum(isinstance(answer, messages.Credit) for answer in answers) == OFFERS_MAX
    assert len(world.journal.uploads(1)) == OFFERS_MAX
    assert world.federation.round.members[first.key].state == "rejected"
    assert files(world) == []


def test_a_stale_round_is_said_to_be_over(world, pair):
    first, given, second, other = pair
    first.deliver(given, first.update(given))
    second.deliver(other, second.update(other))
    late = world.device("c")
    world.device("d").ready()
    third = late.task()
    assert code(first.offer(given, first.update(given, seed=1))) is NackCode.CONFLICT
    assert third.round == 2
    gone = first.offer(replace(given, round=2), first.update(given))
    assert code(gone) is NackCode.MALFORMED


def test_an_update_can_be_resumed_after_the_connection_broke(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    first.offer(given, data)
    assert first.chunk(given, data, 0, 30).have == 30
    first.hello()
    answer = first.offer(given, data)
    assert (answer.have, answer.upto) == (30, len(data))
    assert isinstance(first.deliver(given, data), messages.Ack)


def test_an_update_of_which_all_came_before_a_crash_is_checked_when_it_is_offered_again(world, pair, monkeypatch):
    monkeypatch.setattr("aggregator.intake.uploads.JOURNAL_EVERY_BYTES", 10)
    first, given, *_ = pair
    data = first.update(given)
    world.verify.held = True
    first.deliver_all(given, data)
    world.restart()
    assert world.journal.uploads(1)[0].have == len(data)
    again = world.device("a")
    assert again.offer(given, data) is None
    world.poll()
    assert [message.type for message in again.inbox] == ["ACK"]
    assert files(world) == []


def test_a_piece_twice_or_behind_a_gap_is_answered_with_the_credit(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    first.offer(given, data)
    assert first.chunk(given, data, 0, 30).have == 30
    assert first.chunk(given, data, 0, 30).have == 30
    assert first.chunk(given, data, 40, 10).have == 30
    assert isinstance(first.deliver(given, data), messages.Ack)


def test_a_piece_beyond_the_credit_is_refused_and_the_upload_goes_on(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    first.offer(given, data)
    assert code(first.chunk(given, data, len(data) - 1, payload=b"xy")) is NackCode.ILLEGAL
    assert code(first.chunk(given, data, 0, payload=b"")) is NackCode.ILLEGAL
    assert isinstance(first.deliver(given, data), messages.Ack)


def test_a_piece_of_another_devices_upload_is_refused(world, pair):
    first, given, second, _ = pair
    data = first.update(given)
    upload = upload_id("run", 1, first.key, given.token, hashlib.sha256(data).hexdigest())
    first.offer(given, data)
    assert code(second.say(messages.Chunk(upload=upload, offset=0, payload=data))) is NackCode.UNKNOWN
    assert isinstance(first.deliver(given, data), messages.Ack)


def test_the_window_bounds_what_may_be_under_way(new_world):
    base = BaseModel(
        name="big",
        fingerprint="f" * 64,
        architecture="Toy",
        tokenizer_digest="0" * 64,
        quantizations=(Quantization.NF4,),
    )
    tensors = (DenseTensor(name="head", shape=(3 << 20,)),)
    big = Manifest(base=base, task=Task(kind=TaskKind.EMBEDDING), rank_max=1, dense=tensors)
    world = new_world(manifest=big, cohort_size=1, default_rank=1)
    device = world.device("a")
    given = device.task()
    data = device.update(given)
    assert device.offer(given, data).upto == 4 << 20
    assert code(device.chunk(given, data, 4 << 20)) is NackCode.ILLEGAL
    assert isinstance(device.deliver(given, data), messages.Ack)
    assert world.federation.version.version == 1


def test_more_uploads_than_places_wait_their_turn_and_are_told_when_it_comes(new_world):
    world = new_world(cohort_size=18)
    devices = [world.device(f"d{index:02d}") for index in range(18)]
    for device in devices:
        device.ready()
    offers = {device: (given := device.task(), device.update(given)) for device in devices}
    credits = [device.offer(*offers[device]) for device in devices]
    assert [credit.upto > credit.have for credit in credits] == [True] * 16 + [False] * 2
    assert code(devices[16].chunk(*offers[devices[16]])) is NackCode.ILLEGAL
    devices[3].chunk(*offers[devices[3]])
    world.poll()
    pushed = devices[16].inbox[-1]
    assert isinstance(pushed, messages.Credit)
    assert pushed.upto > pushed.have == 0
    for device in devices[16:17] + devices[:16]:
        device.deliver(*offers[device])
    assert isinstance(devices[17].deliver(*offers[devices[17]]), messages.Ack)
    assert world.federation.version.version == 1


def test_a_full_disk_is_no_refusal(world, pair, monkeypatch):
    first, given, *_ = pair
    data = first.update(given)

    def full(*_):
        raise StoreFull("the disk is full")

    monkeypatch.setattr(world.objects, "partial", full)
    answer = first.offer(given, data)
    assert code(answer) is NackCode.RETRY_LATER
    assert answer.retry_after_ms > 0
    monkeypatch.undo()
    first.offer(given, data)
    monkeypatch.setattr("aggregator.store.objects.Partial.write", full)
    assert code(first.chunk(given, data)) is NackCode.RETRY_LATER
    monkeypatch.undo()
    assert isinstance(first.deliver(given, data), messages.Ack)


def poisoned(given, world, value):
    """An update with one bad value, encoded past the checks of an honest device."""
    layout = given.update_layout(world.manifest)
    tensors = layout.zeros(given.rank)
    data = bytearray(layout.encode(tensors, given.update_codec))
    data[-4:] = np.float32(value).tobytes()
    return bytes(data)


BAD = {
    "NaN": (lambda world, device, given: poisoned(given, world, np.nan), NackCode.NON_FINITE),
    "infinity": (lambda world, device, given: poisoned(given, world, -np.inf), NackCode.NON_FINITE),
    "a huge norm": (lambda world, device, given: poisoned(given, world, 1e30), NackCode.NORM),
    "a norm just above the bound": (lambda world, device, given: poisoned(given, world, 10.1), NackCode.NORM),
    "another header": (
        lambda world, device, given: device.update(given).replace(b'"slots"', b'"slotz"'),
        NackCode.SHAPE,
    ),
    "another dtype": (lambda world, device, given: device.update(given).replace(b"F32", b"I32"), NackCode.SHAPE),
    "another shape": (lambda world, device, given: device.update(given).replace(b"[2,23]", b"[1,46]"), NackCode.SHAPE),
    "no header at all": (lambda world, device, given: b"\xff" * len(device.update(given)), NackCode.SHAPE),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_update_is_refused_with_its_reason_and_nothing_of_it_reaches_the_state(new_world, kind):
    spoil, expected = BAD[kind]
    world = new_world(update_codec=Codec.FP32, update_norm_max=10.0, rounds=1)
    good, bad, third = world.device("a"), world.device("b"), world.device("c")
    good.ready()
    given = bad.task()
    own = good.task()
    data = spoil(world, bad, given)
    assert data != bad.update(given)
    assert len(data) == len(bad.update(given))
    answer = bad.deliver(given, data)
    assert (code(answer), answer.q) == (expected, 77)
    (row,) = world.journal.uploads(1)
    assert (row.state, row.code, row.reason) == ("rejected", expected, answer.reason)
    assert world.journal.assignment(given.token).state == "rejected"
    assert files(world) == []
    waiting = bad.ready()
    assert isinstance(waiting, messages.Wait)
    assert answer.reason in waiting.reason
    good.deliver(own, good.update(own))
    replacement = third.task()
    third.deliver(replacement, third.update(replacement))
    assert world.federation.finished
    clean = new_world(update_codec=Codec.FP32, update_norm_max=10.0, rounds=1)
    for name in "ac":
        clean.device(name).ready()
    for name in "ac":
        device = clean.device(name)
        its = device.task()
        device.deliver(its, device.update(its))
    assert world.federation.version.state == clean.federation.version.state


@pytest.mark.parametrize(("value", "answer"), [(9e3, "ACK"), (2e4, "NACK")])
def test_training_that_diverged_and_stayed_finite_is_refused_unless_told_otherwise(new_world, value, answer):
    world = new_world(update_codec=Codec.FP32, cohort_size=1)
    device = world.device("a")
    given = device.task()
    assert device.deliver(given, poisoned(given, world, value)).type == answer


def test_a_refusal_can_be_had_again(world, pair):
    first, given, *_ = pair
    data = b"\xff" * len(first.update(given))
    refused = first.deliver(given, data)
    assert first.offer(given, data) == refused


def test_bytes_that_do_not_hash_to_the_digest_offered_are_refused(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    first.offer(given, data)
    first.chunk(given, data, payload=first.update(given, seed=1))
    world.poll()
    assert code(first.inbox[-1]) is NackCode.DIGEST
    assert world.federation.round.members[first.key].state == "rejected"


def test_what_a_device_declined_it_cannot_deliver(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    first.offer(given, data)
    first.hello()
    assert first.say(messages.Decline(token=given.token, reason="the battery is low")).type == "ACK"
    assert files(world) == []
    answer = first.offer(given, data)
    assert code(answer) is NackCode.STALE
    assert "the battery is low" in answer.reason


def test_a_device_revoked_in_the_middle_of_an_upload_frees_its_place_and_is_not_merged(world, pair):
    first, given, *_ = pair
    data = first.update(given)
    first.offer(given, data)
    world.journal.enrol_client(first.key, "a", 0.0)
    world.journal.revoke_client(first.key)
    world.standing[first.key] = NackCode.REVOKED
    world.federation.revoked(first.key, world.now)
    assert code(first.chunk(given, data)) is NackCode.REVOKED
    assert files(world) == []
    assert world.federation.round.submitted == ()


def test_a_device_revoked_while_its_update_is_checked_is_not_merged(world, pair):
    first, given, *_ = pair
    world.verify.held = True
    first.deliver_all(given, first.update(given))
    world.journal.enrol_client(first.key, "a", 0.0)
    world.journal.revoke_client(first.key)
    world.federation.revoked(first.key, world.now)
    world.verify.step()
    world.poll()
    assert world.federation.round.submitted == ()
    assert world.journal.uploads(1)[0].state == "rejected"


def test_what_a_device_delivered_before_it_was_revoked_stays(world, pair):
    first, given, *_ = pair
    first.deliver(given, first.update(given))
    world.journal.enrol_client(first.key, "a", 0.0)
    world.journal.revoke_client(first.key)
    world.federation.revoked(first.key, world.now)
    assert world.federation.round.submitted == (first.key,)
