import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import zmq

from aggregator.errors import ConfigError, PortInUse
from aggregator.gate import router
from aggregator.gate.authentication import Domain, Gate
from aggregator.gate.router import Incoming, Port


@pytest.fixture
def forgotten() -> list[bytes]:
    return []


@pytest.fixture
def port(context, server_key, forgotten) -> Iterator[Port]:
    """A port that admits everybody, and its gate."""
    gate = Gate(context, lambda _: True, lambda: 0.0)
    made = bound(context, server_key, forgotten)
    made.gate = gate  # type: ignore[attr-defined]
    yield made
    made.close()
    gate.close()


def bound(context, server_key, forgotten: list[bytes], endpoint: str = "tcp://127.0.0.1:0") -> Port:
    return Port(context, endpoint, secret=server_key.secret, domain=Domain.DATA, forget=forgotten.append)


def next_messages(port: Port, count: int = 1, now: float = 0.0) -> list[Incoming]:
    found: list[Incoming] = []
    for _ in range(1000):
        port.gate.answer()  # type: ignore[attr-defined]
        found += port.receive(now)
        if len(found) >= count:
            return found
        port.socket.poll(10)
    raise AssertionError("no message came")


@pytest.fixture
def connected(port, device) -> Callable[..., tuple]:
    """Connects a device; returns it and its first message as received."""

    def connect(**options):
        made = device(port.endpoint, **options)
        made.connect()
        made.send(b"hello")
        return made, next_messages(port)[0]

    return connect


def test_a_message_carries_the_authenticated_key_and_the_answer_finds_its_way(port, connected) -> None:
    device, message = connected()
    assert message.key == device.key
    assert message.address == "127.0.0.1"
    assert [bytes(frame) for frame in message.frames] == [b"hello"]
    port.send(message.peer, [b"header", b"payload"])
    assert device.receive() == [b"header", b"payload"]


def test_identity_is_the_key_whatever_routing_id_a_device_claims(port, connected) -> None:
    honest, first = connected(routing_id=b"the honest one")
    forger, second = connected(routing_id=honest.key.encode())
    assert (first.key, second.key) == (honest.key, forger.key)


def test_a_routing_id_in_use_cannot_be_taken_over(port, connected) -> None:
    honest, message = connected(routing_id=b"the honest one")
    thief, other = connected(routing_id=b"the honest one")
    assert (other.key, thief.key) == (thief.key, other.key)
    honest.send(b"still here")
    assert next_messages(port)[0] == replace(message, frames=[b"still here"])
    port.send(message.peer, [b"for the honest one"])
    assert honest.receive() == [b"for the honest one"]
    assert not thief.socket.poll(50)


def test_what_waits_for_a_device_that_left_is_not_sent_to_one_that_takes_its_routing_id(port, connected) -> None:
    gone, message = connected(routing_id=b"the same")
    while not port.backed_up:
        port.send(message.peer, [b"secret", bytes(1 << 20)])
    gone.close()
    heir, _ = connected(routing_id=b"the same")
    for _ in range(10):
        port.flush()
        assert not heir.socket.poll(10)


def test_of_a_message_with_endless_frames_a_few_are_kept_and_others_are_served(port, connected) -> None:
    honest, _ = connected()
    flood, first = connected()
    flood.send(*[b""] * 100_000)
    honest.send(b"still here")
    found = {message.key: message.frames for message in next_messages(port, 2)}
    assert {key: len(frames) for key, frames in found.items()} == {flood.key: 3, honest.key: 1}
    flood.send(b"one")
    assert next_messages(port)[0] == replace(first, frames=[b"one"])


def test_a_device_that_reads_nothing_is_cut_off_by_the_kernel(
    context, server_key, forgotten, device, monkeypatch
) -> None:
    monkeypatch.setitem(router._OPTIONS, zmq.TCP_MAXRT, 500)
    gate = Gate(context, lambda _: True, lambda: 0.0)
    port = bound(context, server_key, forgotten)
    port.gate = gate  # type: ignore[attr-defined]
    stuck = device(port.endpoint)
    stuck.socket.rcvhwm = 1
    stuck.connect()
    stuck.send(b"hello")
    (message,) = next_messages(port)
    for _ in range(1000):
        port.flush()
        if not port.backed_up:
            port.send(message.peer, [b"header", bytes(1 << 20)])
        if forgotten:
            break
        port.socket.poll(10)
    assert forgotten == [message.peer]
    port.close()
    gate.close()


def test_a_free_port_is_taken_and_named(port) -> None:
    assert int(port.endpoint.rpartition(":")[2]) > 0


def test_a_port_in_use_is_named(port, context, server_key, forgotten) -> None:
    with pytest.raises(PortInUse, match=port.endpoint):
        bound(context, server_key, forgotten, port.endpoint)


@pytest.mark.parametrize("endpoint", ["", "7700", "tcp://127.0.0.1", "tcp://203.0.113.1:7700", "tcp://127.0.0.1:99999"])
def test_an_endpoint_that_cannot_be_bound_is_named(context, server_key, forgotten, endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on"):
        bound(context, server_key, forgotten, endpoint)


def test_a_frame_above_the_bound_ends_its_connection_and_no_other(port, connected, device) -> None:
    honest, _ = connected()
    giant = device(port.endpoint)
    giant.connect()
    giant.send(bytes(router._DATA_MAX_BYTES + 1))
    assert giant.event(port.gate.answer) is zmq.Event.HANDSHAKE_SUCCEEDED
    assert giant.event(port.gate.answer) is zmq.Event.DISCONNECTED
    honest.send(b"still here")
    assert [m.key for m in next_messages(port)] == [honest.key]


def test_a_device_that_left_is_forgotten_when_it_is_next_spoken_to(port, connected, forgotten) -> None:
    device, message = connected()
    device.close()
    for _ in range(1000):
        port.send(message.peer, [b"anybody there?"])
        if forgotten:
            break
        port.socket.poll(10)
    assert forgotten == [message.peer]
    port.send(message.peer, [b"nobody"])
    assert not port.backed_up


def test_a_device_that_takes_nothing_blocks_nobody_and_is_forgotten(port, connected, forgotten) -> None:
    slow, message = connected()
    quick, other = connected()
    chunk, sent = bytes(1 << 20), 0
    while not forgotten:
        port.send(message.peer, [b"header", chunk])
        sent += 1
        assert sent < 1000, "nothing bounds the outbox"
    assert forgotten == [message.peer]
    port.send(other.peer, [b"for the quick one"])
    assert quick.receive() == [b"for the quick one"]
    assert not port.backed_up
    assert slow is not quick


def test_what_waited_for_a_slow_device_arrives_in_order(port, connected) -> None:
    device, message = connected()
    chunk, count = bytes(1 << 18), 0
    while not port.backed_up:
        port.send(message.peer, [b"%d" % count, chunk])
        count += 1
    port.send(message.peer, [b"%d" % count, chunk])
    got = []
    while len(got) < count + 1:
        port.flush()
        if device.socket.poll(10):
            got.append(int(device.socket.recv_multipart()[0]))
    assert got == list(range(count + 1))
    assert not port.backed_up


def test_a_connection_that_fell_silent_is_forgotten(port, connected, forgotten) -> None:
    device, message = connected()
    port.expire(router.IDLE_S)
    assert forgotten == []
    device.send(b"ping")
    next_messages(port, now=500.0)
    port.expire(router.IDLE_S + 499.0)
    assert forgotten == []
    port.expire(router.IDLE_S + 501.0)
    assert forgotten == [message.peer]


def test_nothing_is_said_to_a_peer_that_never_spoke(port, forgotten) -> None:
    port.send(b"stranger", [b"hello"])
    assert forgotten == []


def test_automatic_routing_ids_differ_from_start_to_start() -> None:
    program = (
        "import zmq; from aggregator.gate.router import make_context; context = make_context();"
        "router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER);"
        "router.bind('inproc://ids'); dealer.connect('inproc://ids'); dealer.send(b'');"
        "print(router.recv().hex()); context.destroy(linger=0)"
    )
    ids = {subprocess.check_output([sys.executable, "-c", program]).strip() for _ in range(2)}
    assert len(ids) == 2
    assert b"006b8b4567" not in ids


@pytest.mark.parametrize(
    ("port_number", "good"),
    [("0", True), ("*", True), ("65535", True), ("65536", False), ("99999", False), ("", False)],
)
def test_port_numbers_are_checked_before_libzmq_wraps_them(port_number: str, good: bool) -> None:
    assert bool(router._BINDABLE.match(f"tcp://10.0.0.1:{port_number}")) is good
