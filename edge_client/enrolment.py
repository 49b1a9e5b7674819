"""Redeeming a ticket: binds this device's own key to the run, once; a lost answer makes the next try say the same."""

from __future__ import annotations

from collections.abc import Callable

from edge_client.errors import AggregatorError, NotEnrolledError, TicketError
from edge_client.session.refusals import error_of
from edge_client.transport.base import AuthenticationFailed, Connected, Disconnected, Received, Transport
from protocol import limits
from protocol.errors import NackCode, RemoteProtocolError
from protocol.header import Frames
from protocol.messages import Enrol, Enrolled, Nack, Role
from protocol.session import Session
from protocol.ticket import Ticket

__all__ = ["TryAgain", "redeem"]

_TIMEOUT_S = 10.0
_NAME_MAX = 64


class TryAgain(Exception):  # noqa: N818  (a reason to wait, not a fault)
    """The aggregator could not be reached, or is busy.

    Args:
        reason: Why, for people.
        after_s: When it wants us back, seconds; None: our own back-off decides.
    """

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


def redeem(ticket: Ticket, name: str, transport: Transport, clock: Callable[[], float]) -> None:
    """Enrols the key that the transport was opened with; doing it twice is the same as once.

    Args:
        ticket: With a token.
        name: What the operator's ``status`` shall call this device; cut at 64 characters.
        transport: A fresh connection to ``ticket.enrolment_endpoint``.
        clock: A monotonic time, seconds.

    Raises:
        TicketError: The token is unknown, expired, used by another device, or for another run.
        NotEnrolledError: The key was revoked.
        AggregatorError: The aggregator breaks the protocol, or speaks another version of it.
        TryAgain: Nothing is wrong with the ticket; open a new connection later.
    """
    if ticket.token is None:
        raise TicketError("the ticket holds no token: send the operator this device's public key, to be enrolled")
    session, give_up_at = Session(Role.CLIENT), clock() + _TIMEOUT_S
    while (left := give_up_at - clock()) > 0:
        match transport.recv(left):
            case Connected():
                enrol = Enrol(q=1, run=ticket.run, token=ticket.token, name=name[:_NAME_MAX])
                transport.send(session.send(enrol))
            case Received(frames=frames):
                return _answered(session, frames)
            case Disconnected(reason=reason):
                raise TryAgain(reason)
            case AuthenticationFailed():
                raise NotEnrolledError("the aggregator's enrolment port refuses this device's key: ask the operator")
            case None:
                pass
    raise TryAgain(f"no answer from {ticket.enrolment_endpoint} for {_TIMEOUT_S:.0f} s")


def _answered(session: Session, frames: Frames) -> None:
    try:
        answer = session.receive(frames)
    except RemoteProtocolError as error:
        raise AggregatorError(f"the answer to the enrolment cannot be read: {error}") from error
    match answer:
        case Enrolled():
            return
        case Nack(code=NackCode.RETRY_LATER, retry_after_ms=after_ms, reason=reason):
            raise TryAgain(reason, after_ms / 1000 or None)
        case Nack(code=code, reason=reason):
            raise error_of(code, reason)
    raise AggregatorError(f"the enrolment was answered with {answer.type}; version {limits.PROTOCOL_VERSION} has none")
