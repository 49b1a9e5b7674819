from collections.abc import Callable, Iterator

import pytest
import zmq

from aggregator.gate import router
from aggregator.gate.authentication import Domain, Gate
from aggregator.gate.router import Port

OK = zmq.Event.HANDSHAKE_SUCCEEDED


class Doorman:
    """Admits the keys in a set; raises for one of them."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.cursed = ""

    def __call__(self, key: str) -> bool:
        if key == self.cursed:
            raise RuntimeError("the check itself failed")
        return key in self.keys


@pytest.fixture
def doorman() -> Doorman:
    return Doorman()


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def gate(context, doorman, clock) -> Iterator[Gate]:
    made = Gate(context, doorman, lambda: clock[0])
    yield made
    made.close()


@pytest.fixture
def port(context, server_key, gate) -> Iterator[Callable[[Domain], Port]]:
    made: list[Port] = []

    def make(domain: Domain) -> Port:
        made.append(Port(context, "tcp://127.0.0.1:0", secret=server_key.secret, domain=domain, forget=lambda _: None))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def data(port) -> Port:
    return port(Domain.DATA)


def test_an_enrolled_key_gets_in(gate, data, device, doorman) -> None:
    known = device(data.endpoint)
    doorman.keys.add(known.key)
    known.connect()
    assert known.event(gate.answer) is OK


def test_an_unknown_key_is_told_that_it_is_refused(gate, data, device) -> None:
    unknown = device(data.endpoint)
    unknown.connect()
    assert unknown.event(gate.answer) is zmq.Event.HANDSHAKE_FAILED_AUTH


def test_the_enrolment_port_takes_any_key(gate, port, device) -> None:
    unknown = device(port(Domain.ENROLMENT).endpoint)
    unknown.connect()
    assert unknown.event(gate.answer) is OK


def test_a_client_without_curve_never_gets_in(gate, data, device) -> None:
    plain = device(data.endpoint, curve=False)
    plain.connect()
    assert plain.event(gate.answer) is not OK


def test_a_client_with_another_servers_key_never_gets_in(gate, data, device, doorman) -> None:
    misled = device(data.endpoint)
    misled.socket.curve_serverkey = zmq.curve_keypair()[0]
    doorman.keys.add(misled.key)
    misled.connect()
    assert misled.event(gate.answer) is not OK


def test_without_a_gate_nobody_gets_in(gate, port, device, doorman, monkeypatch) -> None:
    monkeypatch.setitem(router._OPTIONS, zmq.HANDSHAKE_IVL, 300)
    gate.close()
    known = device(port(Domain.DATA).endpoint)
    doorman.keys.add(known.key)
    known.connect()
    assert known.event(lambda: None) is not OK


def test_a_check_that_fails_refuses_its_device_and_no_other(gate, data, device, doorman, caplog) -> None:
    cursed, known = device(data.endpoint), device(data.endpoint)
    doorman.keys, doorman.cursed = {cursed.key, known.key}, cursed.key
    cursed.connect()
    assert cursed.event(gate.answer) is zmq.Event.HANDSHAKE_FAILED_AUTH
    known.connect()
    assert known.event(gate.answer) is OK
    assert "its check failed" in caplog.text
    assert cursed.key not in caplog.text


@pytest.mark.parametrize(
    "request_frames",
    [
        [],
        [b"1.0"],
        [b"1.0", b"1", b"data", b"10.0.0.1", b"", b"CURVE"],
        [b"1.0", b"1", b"data", b"10.0.0.1", b"", b"CURVE", b"short"],
        [b"1.0", b"1", b"data", b"10.0.0.1", b"", b"NULL"],
        [b"1.0", b"1", b"data", b"10.0.0.1", b"", b"PLAIN", b"user", b"password"],
        [b"1.0", b"1", b"", b"10.0.0.1", b"", b"CURVE", bytes(32)],
        [b"1.0", b"1", b"other", b"10.0.0.1", b"", b"CURVE", bytes(32)],
        [b"\xff" * 300] * 20,
    ],
)
def test_whatever_is_asked_is_answered_and_only_a_known_key_is_let_in(context, request_frames: list[bytes]) -> None:
    gate = Gate(context, lambda _: request_frames[2:3] != [b"data"], lambda: 0.0)
    verdict = gate._verdict(request_frames)
    assert len(verdict) == 6
    assert verdict[2] == b"400"
    gate.close()


def test_a_key_that_shakes_hands_all_the_time_is_slowed_down(gate, doorman, clock) -> None:
    doorman.keys.add("0" * 40)
    ask = [b"1.0", b"1", b"data", b"10.0.0.1", b"", b"CURVE", bytes(32)]
    codes = [gate._verdict(ask)[2] for _ in range(200)]
    assert codes.count(b"200") == 60
    assert set(codes[60:]) == {b"300"}
    clock[0] += 60.0
    assert gate._verdict(ask)[2] == b"200"
