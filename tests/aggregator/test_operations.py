import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from aggregator.config import RunConfig
from aggregator.control import ControlServer, command
from aggregator.errors import AggregatorError, ConfigError, HomeError, HomeInUse
from aggregator.gate.enrolment import Enrolment
from aggregator.operations import Operations, StoppedRun
from aggregator.runs import create_run
from aggregator.store.home import Endpoints, Home, HomeLock
from aggregator.store.journal import Journal, RoundRow
from aggregator.store.objects import ObjectStore
from protocol.identity import client_id
from protocol.manifest import Manifest
from protocol.ticket import Ticket

KEY = zmq.curve_keypair()[0].decode()


@pytest.fixture
def home(tmp_path: Path, manifest: Manifest) -> Home:
    return create_run(tmp_path / "home", RunConfig(run="test", rounds=3, default_rank=2), manifest)


# ---- no daemon: on the journal


def test_a_stopped_run_says_what_it_waits_for(home: Home) -> None:
    found = command(home, "status")
    assert (found["run"], found["round"], found["rounds"], found["phase"]) == ("test", 1, 3, "stopped")
    assert "serve" in found["waiting_for"]


def test_devices_are_enrolled_and_revoked_without_a_daemon(home: Home) -> None:
    assert command(home, "enroll", key=KEY, name="phone")["id"] == client_id(KEY)
    assert [device["name"] for device in command(home, "status")["devices"]] == ["phone"]
    assert command(home, "revoke", who="phone")["status"] == "revoked"
    assert command(home, "status")["devices"] == []


def test_rounds_are_added_without_a_daemon(home: Home) -> None:
    assert command(home, "extend", rounds=4) == {"rounds": 7}
    assert command(home, "extend", rounds=1) == {"rounds": 8}
    assert command(home, "status")["rounds"] == 8


def test_a_ticket_needs_to_know_the_port(home: Home) -> None:
    with pytest.raises(HomeError, match="serve"):
        command(home, "invite", expires_s=60.0)
    home.set_endpoints(Endpoints(data="tcp://10.0.0.5:7700", enrolment="tcp://10.0.0.5:7701"))
    ticket = Ticket.from_json(command(home, "invite", expires_s=60.0)["ticket"].encode())
    assert (ticket.run, ticket.endpoint, ticket.server_key.encode()) == (
        "test",
        "tcp://10.0.0.5:7700",
        home.server_keys()[0],
    )
    assert ticket.token is not None


def test_a_version_is_named_by_its_state(home: Home) -> None:
    with Journal(home.journal) as journal:
        state = journal.versions()[0].state_digest
    assert command(home, "version", version=None) == {"version": 0, "round": 0, "state": state}
    with pytest.raises(ConfigError, match="no version 7; the latest is 0"):
        command(home, "version", version=7)


def test_a_version_that_was_collected_is_said_to_be(home: Home) -> None:
    objects = ObjectStore(home.objects)
    with Journal(home.journal) as journal:
        first = journal.versions()[0]
        for number in (1, 2):
            journal.open_round(RoundRow(number=number, version=number - 1, seed=0))
            journal.close_round(number, [])
            digest = objects.put(bytes([number]))
            journal.commit_round(
                number, replace(first, version=number, round=number, state_digest=digest, body_digest=digest), ""
            )
    assert command(home, "version", version=0)["version"] == 0
    objects.path(first.state_digest).unlink()
    with pytest.raises(ConfigError, match="version 0 is not on disk any more: this run keeps 1 before the latest, 2"):
        command(home, "version", version=0)
    assert command(home, "version", version=1)["version"] == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("launch", {}),
        ("extend", {}),
        ("extend", {"rounds": 0}),
        ("extend", {"rounds": "two"}),
        ("invite", {"expires_s": -1.0}),
        ("enroll", {"key": "short", "name": ""}),
        ("revoke", {"who": "nobody"}),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_with_the_reason(home: Home, name: str, arguments: dict) -> None:
    with pytest.raises(ConfigError):
        command(home, name, **arguments)


def test_there_is_nothing_to_stop(home: Home) -> None:
    with pytest.raises(HomeError, match="no daemon runs"):
        command(home, "stop")


# ---- a daemon: over the socket


@pytest.fixture
def served(home: Home) -> Iterator[Home]:
    """A home that is owned, whose owner answers commands in another thread."""
    ready, done = threading.Event(), threading.Event()

    def own() -> None:
        with HomeLock(home), Journal(home.journal) as journal, zmq.Context() as context:
            enrolment = Enrolment("test", journal, strict=False, wall_clock=lambda: 0.0)
            server = ControlServer(
                context, home.control_endpoint, Operations(home, journal, enrolment, StoppedRun(home, journal))
            )
            ready.set()
            while not done.is_set():
                server.socket.poll(20)
                server.answer()
            server.close()

    owner = threading.Thread(target=own)
    owner.start()
    assert ready.wait(10)
    yield home
    done.set()
    owner.join()


def test_commands_go_to_the_owner_of_the_home(served: Home) -> None:
    with pytest.raises(HomeInUse):
        HomeLock(served)
    assert command(served, "extend", rounds=2) == {"rounds": 5}
    assert command(served, "enroll", key=KEY, name="phone")["name"] == "phone"
    assert command(served, "status")["rounds"] == 5


def test_what_a_command_raises_there_is_raised_here(served: Home) -> None:
    with pytest.raises(ConfigError, match="expected the key, id or name"):
        command(served, "revoke", who="nobody")
    with pytest.raises(HomeError, match="no daemon runs"):
        command(served, "stop")


@pytest.mark.parametrize("request_bytes", [b"", b"{", b"[]", b"{}", b'{"command": 5}', b"\xff\xfe", b"null"])
def test_garbage_on_the_socket_is_answered_and_stops_nothing(served: Home, request_bytes: bytes) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(served.control_endpoint)
        socket.send(request_bytes)
        assert socket.poll(10_000)
        assert b'"error"' in socket.recv()
    assert command(served, "status")["run"] == "test"


def test_an_owner_that_does_not_answer_is_told_as_such(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.control._PATIENCE_S", 0.2)
    with HomeLock(home), pytest.raises(HomeInUse):
        command(home, "status")
    with HomeLock(home), zmq.Context() as context, context.socket(zmq.REP) as deaf:
        deaf.bind(home.control_endpoint)
        with pytest.raises(AggregatorError, match="does not answer"):
            command(home, "status")
