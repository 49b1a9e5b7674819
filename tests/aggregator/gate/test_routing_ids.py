"""Routing ids are the gate's to give: a forged one aborts a ROUTER whose connections name themselves, and not ours."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import zmq

from aggregator.gate.authentication import Domain, Gate
from aggregator.gate.router import Port

# libzmq's generator is seeded with the seed that it has in a process that never seeds it, so the first connection
# without an id of its own would be numbered 6b8b4567. The attacker claims some of the numbers that come next, then
# connects without an id until their turn has come.
_ATTACK = """
import ctypes, sys
import zmq
from aggregator.gate import authentication
from aggregator.gate.authentication import Domain, Gate
from aggregator.gate.router import Port, make_context

if sys.argv[1] == "unnamed":
    authentication._identity = lambda routing_id: b""
public, secret = zmq.curve_keypair()
context, attacker = make_context(), zmq.Context()
gate = Gate(context, lambda key: True, lambda: 0.0)
ctypes.CDLL(None).srand(1)
port = Port(context, "tcp://127.0.0.1:0", secret=secret, domain=Domain.DATA, forget=lambda peer: None)

poller, devices = zmq.Poller(), []
poller.register(gate.socket, zmq.POLLIN)
poller.register(port.socket, zmq.POLLIN)

def connect(*routing_ids):
    for routing_id in routing_ids:
        device = attacker.socket(zmq.DEALER)
        devices.append(device)
        device.curve_publickey, device.curve_secretkey = zmq.curve_keypair()
        device.curve_serverkey = public
        if routing_id:
            device.routing_id = routing_id
        device.connect(port.endpoint)
        device.send(b"hello")
    got = []
    while len(got) < len(routing_ids):
        gate.answer()
        got += [message.peer for message in port.receive(0.0)]
        poller.poll(100)
    return got

ids = connect(*(b"\\0" + (0x6B8B4567 + number).to_bytes(4, "big") for number in range(20, 60)))
ids += connect(*[b""] * 100)
assert len(set(ids)) == 140
assert not any(routing_id[0] == 0 for routing_id in ids)
"""


@pytest.mark.parametrize(("named", "code"), [("unnamed", -signal.SIGABRT), ("named", 0)])
def test_a_forged_routing_id_aborts_a_port_unless_the_gate_names_every_connection(named: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", _ATTACK, named], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("claimed", [None, b"\0", b"\0\0\0\0\0", b"x" * 255, b"\1" + bytes(15)])
def test_no_device_is_addressed_by_what_it_calls_itself(context, server_key, device, claimed: bytes | None) -> None:
    gate = Gate(context, lambda _: True, lambda: 0.0)
    port = Port(context, "tcp://127.0.0.1:0", secret=server_key.secret, domain=Domain.DATA, forget=lambda _: None)
    twins = [device(port.endpoint, routing_id=claimed) for _ in range(2)]
    for twin in twins:
        twin.connect()
        assert twin.event(gate.answer) is zmq.Event.HANDSHAKE_SUCCEEDED
        twin.send(b"hello")
    found = {}
    while len(found) < 2:
        found |= {message.key: message.peer for message in port.receive(0.0)}
    assert {len(peer) for peer in found.values()} == {16}
    assert claimed not in found.values()
    for twin in twins:
        port.send(found[twin.key], [twin.public])
        assert twin.receive() == [twin.public]
    port.close()
    gate.close()


def test_a_context_with_several_io_threads_cannot_be_guarded() -> None:
    with zmq.Context(io_threads=2) as context, pytest.raises(ValueError, match="one I/O thread"):
        Gate(context, lambda _: True, lambda: 0.0)
