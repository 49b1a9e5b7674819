"""Redeeming a ticket against scripted answers."""

from __future__ import annotations

from collections import deque

import pytest

from edge_client.enrolment import TryAgain, redeem
from edge_client.errors import AggregatorError, NotEnrolledError, TicketError
from edge_client.transport import AuthenticationFailed, Connected, Disconnected, Received
from protocol.errors import NackCode
from protocol.header import decode, encode
from protocol.messages import Enrol, Enrolled, Nack, Pong
from protocol.ticket import Ticket

TICKET = Ticket(
    run="r", endpoint="tcp://a:1", enrolment_endpoint="tcp://a:2", server_key="a" * 40, token="1" * 32, expires_at=None
)


class Script:
    """A transport that plays events and keeps what is sent; its clock moves while it waits."""

    bytes_sent = bytes_received = 0

    def __init__(self, *events):
        self.events, self.sent, self.now = deque(events), [], 0.0

    def clock(self):
        return self.now

    def send(self, frames):
        self.sent.append(decode(frames))

    def recv(self, timeout_s):
        if self.events:
            return self.events.popleft()
        self.now += timeout_s
        return None

    def close(self):
        pass


def redeemed(*events, ticket=TICKET, name="device"):
    script = Script(*events)
    redeem(ticket, name, script, script.clock)
    return script


def answer(message):
    return Received(encode(message))


def test_the_token_and_the_name_are_sent_once_connected():
    script = redeemed(Connected(), answer(Enrolled(q=1, run="r")), name="n" * 80)
    assert script.sent == [Enrol(q=1, run="r", token="1" * 32, name="n" * 64)]


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([Connected(), answer(Nack(q=1, code=NackCode.TICKET, reason="expired"))], TicketError),
        ([Connected(), answer(Nack(q=1, code=NackCode.WRONG_RUN, reason="other"))], TicketError),
        ([Connected(), answer(Nack(q=1, code=NackCode.REVOKED, reason="gone"))], NotEnrolledError),
        ([AuthenticationFailed()], NotEnrolledError),
        ([Connected(), answer(Pong(q=1))], AggregatorError),
        ([Connected(), Received([b"\xc1"])], AggregatorError),
        ([Disconnected("cut")], TryAgain),
        ([Connected(), Disconnected("cut")], TryAgain),
        ([Connected()], TryAgain),
    ],
)
def test_each_way_it_can_fail_has_its_error(events, error):
    with pytest.raises(error):
        redeemed(*events)


def test_a_busy_aggregator_says_when_to_come_back():
    busy = Nack(q=1, code=NackCode.RETRY_LATER, reason="busy", retry_after_ms=2500)
    with pytest.raises(TryAgain) as caught:
        redeemed(Connected(), answer(busy))
    assert caught.value.after_s == 2.5


def test_a_ticket_without_a_token_cannot_be_redeemed():
    ticket = Ticket(
        run="r", endpoint="tcp://a:1", enrolment_endpoint="tcp://a:2", server_key="a" * 40, token=None, expires_at=None
    )
    with pytest.raises(TicketError, match="public key"):
        redeemed(Connected(), ticket=ticket)
