"""What ``status`` says: where the run is, who is missing and why."""

import json
from dataclasses import asdict

import pytest

from aggregator.status import run_status
from protocol import messages
from protocol.identity import client_id


@pytest.fixture
def status(world):
    def asked(world=world, names="abc"):
        return run_status(world.federation, world.hub.devices, {n.ljust(40, "_"): f"dev-{n}" for n in names}, world.now)

    return asked


def by_name(status):
    return {row["name"]: row for row in status.devices}


def test_a_gathering_round_says_who_is_here(world, status):
    world.device("a").ready()
    found = status()
    assert (found.run, found.round, found.rounds, found.version, found.phase) == ("run", 1, 2, 0, "gathering")
    assert found.waiting_for == "clients: 1 of 2 are here (3 enrolled)"
    assert found.deadline_in_s is None
    assert by_name(found)["dev-a"]["id"] == client_id("a".ljust(40, "_"))
    assert by_name(found)["dev-b"]["seen_s_ago"] is None


def test_an_open_round_says_who_is_missing_since_when_and_how_far_it_is(new_world, status):
    world = new_world(deadline_s=60.0, quorum=1)
    first, second = world.device("a"), world.device("b")
    first.ready()
    given = second.task()
    own = first.task()
    first.deliver(own, first.update(own))
    data = second.update(given)
    second.offer(given, data)
    second.chunk(given, data, 0, 50)
    world.now += 12.0
    found = status(world)
    assert found.phase == "open"
    assert found.deadline_in_s == 48.0
    assert found.waiting_for == (
        f"updates: 1 of 2 are in; missing: dev-b (assigned, seen 12 s ago, 50 of {len(data)} bytes in); "
        "deadline in 48 s, then 1 suffice"
    )
    rows = by_name(found)
    assert (rows["dev-a"]["state"], rows["dev-a"]["update_bytes"]) == ("submitted", len(data))
    assert (rows["dev-b"]["update_bytes"], rows["dev-b"]["update_size"]) == (50, len(data))
    assert rows["dev-b"]["bytes_in"] > 50
    assert rows["dev-c"]["state"] == "idle"


def test_a_place_that_nobody_has_and_who_is_out_are_named(world, status):
    first, second = world.device("a"), world.device("b")
    first.ready()
    given = second.task()
    second.say(messages.Decline(token=given.token, reason="too hot"))
    first.task()
    found = status()
    assert "dev-a (assigned" in found.waiting_for
    assert "1 more, whoever asks next" in found.waiting_for
    assert "out: dev-b (declined: too hot)" in found.waiting_for


def test_a_merge_and_the_end_are_told(world, status):
    world.merge.held = True
    for _ in range(2):
        world.play()
        assert status().phase == "merging"
        assert status().waiting_for == "the merge of 2 updates"
        world.merge.step()
        world.poll()
    found = status()
    assert (found.phase, found.round, found.version) == ("finished", 3, 2)
    assert "extend" in found.waiting_for


def test_a_status_is_plain_data(world, status):
    world.device("a").ready()
    assert json.loads(json.dumps(asdict(status())))["devices"][0]["name"] == "dev-a"
