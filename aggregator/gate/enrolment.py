"""Which devices belong to the run: tickets with one-time tokens, keys enrolled by hand, revocation.

What the journal says is mirrored in memory, because every handshake and every message asks. Tokens are kept as
hashes only: who reads the journal cannot enrol.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping

from aggregator.errors import ConfigError
from aggregator.gate.rate import RateLimit
from aggregator.store.home import Endpoints
from aggregator.store.journal import Journal, TokenRefused
from aggregator.store.rows import ClientRow, ClientStatus
from protocol import limits, messages
from protocol.errors import NackCode, RemoteProtocolError
from protocol.header import Frames
from protocol.identity import check_key, client_id
from protocol.messages import Role
from protocol.session import Session
from protocol.ticket import Ticket

__all__ = ["Enrolment"]

_ATTEMPTS = 600
"""Enrolments a minute from one address: plenty for devices behind one router, and a bound on the journal's load."""


class Enrolment:
    """The devices of one run.

    Args:
        run: Run id.
        journal: Open journal.
        strict: Whether only keys enrolled by hand are taken.
        wall_clock: Seconds since 1970, for the expiry of tokens.
    """

    def __init__(self, run: str, journal: Journal, *, strict: bool, wall_clock: Callable[[], float]) -> None:
        self._run, self._journal, self._strict, self._wall_clock = run, journal, strict, wall_clock
        self._limit = RateLimit(_ATTEMPTS, per_s=60.0)
        self._clients = {row.key: row for row in journal.clients()}

    # ---- what the ports and the hub ask

    def standing(self, key: str) -> NackCode | None:
        """Why a key may not speak, or None if it may."""
        row = self._clients.get(key)
        if row is None:
            return NackCode.NOT_ENROLLED
        return NackCode.REVOKED if row.status is ClientStatus.REVOKED else None

    def admits(self, key: str) -> bool:
        """Whether a key may use the data port."""
        return self.standing(key) is None

    @property
    def names(self) -> Mapping[str, str]:
        """Enrolled keys and what the operator calls them."""
        return {key: row.name for key, row in self._clients.items() if row.status is ClientStatus.ENROLLED}

    def answer(self, key: str, address: str, frames: Frames, now: float) -> list[bytes | memoryview]:
        """Answers one message on the enrolment port.

        Args:
            key: The authenticated public key, Z85.
            address: Where it came from; what attempts are counted by, since keys cost nothing.
            frames: The message.
            now: Monotonic time, seconds.
        """
        session, q = Session(Role.AGGREGATOR), 0
        try:
            message = session.receive(frames)
            q = message.q
            if not isinstance(message, messages.Enrol):
                raise RemoteProtocolError("this port takes ENROL only", NackCode.ILLEGAL)
            self._redeem(key, address, message, now)
        except RemoteProtocolError as error:
            return _refusal(error, q)
        return session.send(messages.Enrolled(q=q, run=self._run))

    # ---- what the operator asks

    def invite(self, endpoints: Endpoints, server_key: str, expires_s: float) -> Ticket:
        """Makes a ticket, in strict mode one without a token.

        Args:
            endpoints: Where the daemon listens.
            server_key: Its CURVE public key, Z85.
            expires_s: Seconds for which the token works.
        """
        token = expires_at = None
        if not self._strict:
            token, now = secrets.token_hex(16), self._wall_clock()
            expires_at = now + expires_s
            self._journal.add_token(_hash(token), expires_at, now)
        return Ticket(
            run=self._run,
            endpoint=endpoints.public_data,
            enrolment_endpoint=endpoints.public_enrolment,
            server_key=server_key,
            token=token,
            expires_at=expires_at,
        )

    def enrol(self, key: str, name: str) -> ClientRow:
        """Enrols a key by hand; takes a revoked one back.

        Raises:
            ConfigError: It is not a public key.
        """
        try:
            check_key(key)
        except RemoteProtocolError as error:
            raise ConfigError(f"{key!r} is no key: {error}; `tributary-client keygen` prints one") from error
        self._journal.enrol_client(key, _plain(name), self._wall_clock())
        return self._reread(key)

    def revoke(self, who: str) -> ClientRow:
        """Revokes a device.

        Args:
            who: Its key, its id, or its name if no other device has the same.

        Raises:
            ConfigError: No such device, or several.
        """
        rows = [row for row in self._clients.values() if who in (row.key, client_id(row.key), row.name)]
        if len(rows) != 1:
            found = ", ".join(client_id(row.key) for row in rows)
            hint = f"; {len(rows)} devices are called so, name one of {found}" if rows else "; `status` lists them"
            raise ConfigError(f"expected the key, id or name of one device, got {who!r}{hint}")
        self._journal.revoke_client(rows[0].key)
        return self._reread(rows[0].key)

    def _redeem(self, key: str, address: str, message: messages.Enrol, now: float) -> None:
        if not self._limit.allows(address, now):
            raise RemoteProtocolError("too many enrolments from your address; wait a minute", NackCode.RETRY_LATER)
        if message.run != self._run:
            raise RemoteProtocolError(
                f"the ticket is for the run {message.run!r}, this aggregator serves {self._run!r}", NackCode.WRONG_RUN
            )
        if self.standing(key) is NackCode.REVOKED:
            raise RemoteProtocolError("this device's key was revoked; ask the operator", NackCode.REVOKED)
        if self._strict:
            raise RemoteProtocolError(
                "this run takes only keys enrolled by hand; send the operator your public key", NackCode.TICKET
            )
        try:
            self._journal.redeem_token(_hash(message.token), key, _plain(message.name), self._wall_clock())
        except TokenRefused as error:
            raise RemoteProtocolError(str(error), NackCode.TICKET) from error
        self._reread(key)

    def _reread(self, key: str) -> ClientRow:
        row = self._journal.client(key)
        assert row is not None, "a client was written just now"
        self._clients[key] = row
        return row


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _plain(name: str) -> str:
    """A device's name as it may stand in a terminal or a log."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _refusal(error: RemoteProtocolError, q: int) -> list[bytes | memoryview]:
    retry_ms = 60_000 if error.code is NackCode.RETRY_LATER else 0
    return Session(Role.AGGREGATOR).send(
        messages.Nack(q=q, code=error.code, reason=str(error)[: limits.REASON_MAX_CHARS], retry_after_ms=retry_ms)
    )
