"""The ticket: everything a device needs to join a run, in one small file the operator hands over."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

from protocol.errors import NackCode, RemoteProtocolError
from protocol.identity import check_key
from protocol.typed import parse_json

__all__ = ["Ticket"]

FORMAT = "tributary-ticket/1"
_MAX_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What :command:`tributary-aggregator invite` writes.

    It holds a secret (the token) until it is used or expires: hand it over as you would a password.
    """

    run: str
    """Run id."""
    endpoint: str
    """Where enrolled devices talk, such as ``tcp://10.0.0.5:7700``."""
    enrolment_endpoint: str
    """Where the token is redeemed."""
    server_key: str
    """The aggregator's CURVE public key, Z85: what makes the first contact safe from impostors."""
    token: str | None
    """One-time token, 32 hex digits; None: the device's key is enrolled by hand."""
    expires_at: float | None = None
    """When the token stops working, seconds since 1970 on the aggregator's clock; for people, not checked here."""

    def to_json(self) -> bytes:
        """The file's contents."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Reads a ticket file.

        Raises:
            RemoteProtocolError: ``TICKET``, if it is not a ticket of this version.
        """
        try:
            fields = parse_json(data, _MAX_BYTES, "ticket")
            if fields.text("format") != FORMAT:
                raise RemoteProtocolError(f"ticket: expected format {FORMAT!r}")
            ticket = cls(
                run=fields.text("run"),
                endpoint=fields.text("endpoint"),
                enrolment_endpoint=fields.text("enrolment_endpoint"),
                server_key=check_key(fields.text("server_key")),
                token=fields.optional_token("token"),
                expires_at=fields.optional_number("expires_at"),
            )
            fields.finish()
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{error}; ask the operator for a new ticket", NackCode.TICKET) from error
        return ticket
