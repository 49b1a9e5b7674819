"""Sessions over the hub: greeting, standing, strikes, and whom an answer goes to."""

import pytest

from aggregator.errors import StoreFull
from aggregator.hub import STRIKES_MAX
from protocol import messages
from protocol.errors import NackCode
from protocol.header import decode, encode


def test_a_greeting_says_what_run_is_served(world):
    answer = world.stranger("a").say(messages.Hello(version_min=1, version_max=3, sdk="x"))
    assert isinstance(answer, messages.Welcome)
    assert (answer.run, answer.version, answer.epoch) == ("run", 2, "epoch")
    assert (answer.manifest, answer.manifest_bytes) == (world.manifest.digest, len(world.manifest.to_json()))


@pytest.mark.parametrize(("lowest", "highest"), [(3, 9), (0, 1)])
def test_a_device_without_a_common_version_is_told_and_its_connection_is_over(world, lowest, highest):
    device = world.stranger("a")
    answer = device.say(messages.Hello(version_min=lowest, version_max=highest, sdk="x"))
    assert isinstance(answer, messages.Nack)
    assert answer.code is NackCode.INCOMPATIBLE
    assert "update the older side" in answer.reason
    assert device.say(messages.Ping()) is None


def test_enrolment_is_not_served_on_the_data_port(world):
    answer = world.stranger("a").say(messages.Enrol(run="run", token="0" * 32, name="a"))
    assert (answer.type, answer.code) == ("NACK", NackCode.ILLEGAL)
    assert "not served here" in answer.reason


def test_nothing_but_a_greeting_opens_a_connection(world):
    answer = world.stranger("a").ready()
    assert (answer.type, answer.code) == ("NACK", NackCode.ILLEGAL)


def test_a_ping_is_answered_at_any_time(world):
    assert world.device("a").say(messages.Ping()) == messages.Pong(q=77)


def test_a_farewell_ends_the_connection_but_not_the_device(world):
    device = world.device("a")
    assert device.say(messages.Bye(reason="sleep")) is None
    assert device.say(messages.Ping()) is None
    assert isinstance(device.hello(), messages.Welcome)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ((b"",), NackCode.MALFORMED),
        ((b"\xc1garbage",), NackCode.MALFORMED),
        ((), NackCode.MALFORMED),
        ((b"\x80", b"", b""), NackCode.MALFORMED),
        ((b"x" * 5000,), NackCode.TOO_LARGE),
        (tuple(encode(messages.Pong())), NackCode.ILLEGAL),
        (tuple(encode(messages.Hello(version_min=2, version_max=2, sdk="x"))), NackCode.ILLEGAL),
        (tuple(encode(messages.Report(token="0" * 32, num_examples=1, metrics={}))), NackCode.UNKNOWN),
    ],
)
def test_what_a_device_must_not_send_is_refused_and_the_session_goes_on(world, frames, code):
    device = world.device("a")
    (answer,) = device.raw(*frames)
    assert (answer.type, answer.code) == ("NACK", code)
    assert device.say(messages.Ping()) == messages.Pong(q=77)


def test_a_connection_that_talks_garbage_is_not_listened_to_for_ever(world):
    device = world.device("a")
    answered = sum(len(device.raw(b"garbage")) for _ in range(STRIKES_MAX + 5))
    assert answered == STRIKES_MAX + 1
    assert device.say(messages.Ping()) is None
    assert isinstance(world.device("b").ready(), messages.Wait)


@pytest.mark.parametrize("code", [NackCode.NOT_ENROLLED, NackCode.REVOKED])
def test_a_key_without_standing_is_told_so_once(world, code):
    device = world.stranger("a")
    world.standing[device.key] = code
    answer = device.say(messages.Hello(version_min=2, version_max=2, sdk="x"))
    assert (answer.type, answer.code) == ("NACK", code)
    assert "operator" in answer.reason
    assert device.say(messages.Ping()) is None


def test_a_revocation_takes_effect_in_the_middle_of_a_session(world):
    device, other = world.device("a"), world.device("b")
    device.ready()
    world.standing[device.key] = NackCode.REVOKED
    answer = device.ready()
    assert (answer.type, answer.code) == ("NACK", NackCode.REVOKED)
    assert device.say(messages.Ping()) is None
    assert other.say(messages.Ping()) is not None


def test_an_answer_goes_to_the_newest_connection_of_its_device(world):
    first, second = world.device("a"), world.device("b")
    given = second.task() if first.ready() and second.ready() else None
    data = second.update(given)
    world.verify.held = True
    assert second.deliver_all(given, data) is None
    second.hello()
    assert second.offer(given, data) is None
    world.verify.step()
    world.poll()
    assert [message.type for message in second.inbox] == ["ACK"]


def test_an_answer_does_not_go_to_another_device_that_took_over_the_peer_id(world):
    first, second = world.device("a"), world.device("b")
    first.ready()
    given = second.task()
    world.verify.held = True
    second.deliver_all(given, second.update(given))
    thief = world.stranger("c")
    thief.peer = second.peer
    world.devices[second.peer] = thief
    thief.say(messages.Hello(version_min=2, version_max=2, sdk="x"))
    thief.inbox.clear()
    world.verify.step()
    world.poll()
    assert thief.inbox == []


def test_a_forgotten_connection_starts_anew_and_is_told_nothing(world):
    device = world.device("a")
    world.hub.forget(device.peer)
    world.hub.forget(b"unknown")
    answer = device.ready()
    assert (answer.type, answer.code) == ("NACK", NackCode.ILLEGAL)


def test_a_full_disk_asks_the_device_to_come_back(world, monkeypatch):
    device = world.device("a")
    world.device("b").ready()

    def full(row):
        raise StoreFull("the disk is full")

    monkeypatch.setattr(world.journal, "open_round", full)
    answer = device.ready()
    assert (answer.type, answer.code) == ("NACK", NackCode.RETRY_LATER)
    assert answer.retry_after_ms > 0
    monkeypatch.undo()
    assert isinstance(device.ready(), messages.Task)


def test_an_assignment_that_found_no_room_in_the_journal_is_made_when_there_is(world, monkeypatch):
    device = world.device("a")
    world.device("b").ready()

    def full(row):
        raise StoreFull("the disk is full")

    monkeypatch.setattr(world.journal, "add_assignment", full)
    assert device.ready().code is NackCode.RETRY_LATER
    monkeypatch.undo()
    assert isinstance(device.ready(), messages.Task)


def test_traffic_is_counted_by_device_over_all_its_connections(world):
    device = world.device("a")
    device.hello()
    hello = encode(messages.Hello(version_min=2, version_max=2, sdk="fake", q=77))
    assert world.hub.devices[device.key].bytes_in == 2 * sum(map(len, hello))
    assert world.hub.devices[device.key].bytes_out > 0
    assert world.hub.devices[device.key].heard_at == world.now


def test_what_was_said_in_an_earlier_session_changes_nothing_when_it_is_said_again(world):
    devices, said = [world.device("a"), world.device("b")], []
    feed = world.hub.feed

    def recorded(peer, key, frames, now):
        said.append([bytes(frame) for frame in frames])
        return feed(peer, key, frames, now)

    world.hub.feed = recorded
    for device in devices:
        device.ready()
    for device in devices:
        given = device.task()
        assert isinstance(device.deliver(given, device.update(given)), messages.Ack)
        device.offer(given, device.update(given, seed=1))  # a conflict: the first one counts
    world.hub.feed = feed
    world.poll()
    before = everything(world)
    assert before["version"] == 1
    for speaker in (world.device("a"), world.device("b"), world.device("c")):
        for frames in said:
            if decode(frames).type != "READY":
                speaker.raw(*frames)
                world.poll()
                assert everything(world) == before


def everything(world):
    """What a message could change, apart from when somebody was heard."""
    journal, federation = world.journal, world.federation
    numbers = [row.number for row in journal.rounds()]
    return {
        "rounds": journal.rounds(),
        "versions": journal.versions(),
        "uploads": [row for number in numbers for row in journal.uploads(number)],
        "assignments": [row for number in numbers for row in journal.assignments(number)],
        "round": federation.round,
        "version": federation.version.version,
        "files": sorted(path.name for path in (world.folder / "store").rglob("*")),
    }
