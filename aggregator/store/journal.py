"""The journal: every decision that must outlive a crash, in one SQLite file with one writer.

WAL with ``synchronous=FULL``: a method that returned has its change on disk (with ``NORMAL`` a power cut loses what
was acknowledged). One connection, used by the thread that made it: SQLite before 3.51.3 can corrupt a WAL that two
connections write and checkpoint. Each method is one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

from aggregator.errors import AggregatorError, StoreCorrupt, StoreFull
from aggregator.store.rows import (
    SCHEMA,
    SCHEMA_VERSION,
    AnswerRow,
    AssignmentRow,
    AssignmentState,
    ClientRow,
    ClientStatus,
    RoundPhase,
    RoundRow,
    UploadRow,
    UploadState,
    VersionRow,
)
from protocol.codecs import Codec

__all__ = ["AnswerRow", "AssignmentRow", "ClientRow", "Journal", "RoundRow", "TokenRefused", "UploadRow", "VersionRow"]

_Row = Mapping[str, Any]
T = TypeVar("T")


class TokenRefused(AggregatorError):  # noqa: N818 - names a condition, as its family does
    """A one-time token does not enrol this key; the message says why."""


class Journal:
    """The journal of one run.

    Args:
        path: The file; made if it is not there.

    Raises:
        StoreCorrupt: The file is damaged, or written by another version of this software.
        StoreFull: There is no room on the disk for what SQLite keeps beside it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._db.close()
            if _no_room(error):
                raise self._full() from error
            raise StoreCorrupt(f"{path} is no journal ({error}); restore it from a backup") from error
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- devices

    def add_token(self, token_hash: str, expires_at: float, now: float) -> None:
        """Remembers a one-time token by its hash; times in seconds since 1970."""
        with self._transaction():
            self._do("INSERT INTO token (hash, expires_at, created_at) VALUES (?, ?, ?)", token_hash, expires_at, now)

    def redeem_token(self, token_hash: str, key: str, name: str, now: float) -> None:
        """Enrols a key with a token. For the key that already used the token this is repeatable.

        Raises:
            TokenRefused: Unknown, expired, or used by another key; or the key was revoked.
        """
        with self._transaction():
            token = self._one("SELECT * FROM token WHERE hash = ?", token_hash)
            client = self.client(key)
            if client is not None and client.status is ClientStatus.REVOKED:
                raise TokenRefused("this device's key was revoked; ask the operator")
            if token is None:
                raise TokenRefused("the ticket's token is unknown here; ask the operator for a new ticket")
            if token["redeemed_by"] not in (None, key):
                raise TokenRefused("the ticket was used by another device; ask the operator for one of your own")
            if token["redeemed_by"] is None and now >= token["expires_at"]:
                raise TokenRefused("the ticket has expired; ask the operator for a new one")
            if client is None:
                self._enrol(key, name, now)
            self._do(
                "UPDATE token SET redeemed_by = ?, redeemed_at = coalesce(redeemed_at, ?) WHERE hash = ?",
                *(key, now, token_hash),
            )

    def enrol_client(self, key: str, name: str, now: float) -> None:
        """Enrols a key by hand; takes a revoked one back."""
        with self._transaction():
            self._enrol(key, name, now)

    def revoke_client(self, key: str) -> bool:
        """Revokes a key and voids its open assignments; what was acknowledged stays.

        Returns:
            Whether the key was enrolled.
        """
        with self._transaction():
            changed = self._do("UPDATE client SET status = 'revoked' WHERE key = ? AND status = 'enrolled'", key)
            self._do(
                "UPDATE assignment SET state = 'expired', reason = 'the device was revoked' "
                "WHERE client = ? AND state = 'open'",
                key,
            )
            return changed == 1

    def client(self, key: str) -> ClientRow | None:
        """One device by its key."""
        row = self._one("SELECT * FROM client WHERE key = ?", key)
        return None if row is None else _client(row)

    def clients(self) -> list[ClientRow]:
        """All devices, revoked ones too, in order of enrolment."""
        return self._all(_client, "SELECT * FROM client ORDER BY enrolled_at, key")

    # ---- rounds and versions

    def add_version(self, row: VersionRow) -> None:
        """Adds the version that a run starts from."""
        with self._transaction():
            self._insert("version", row)

    def open_round(self, row: RoundRow) -> None:
        """Starts a round."""
        with self._transaction():
            self._insert("round", row)

    def round_elapsed(self, number: int, elapsed_s: float) -> None:
        """Remembers for how long a round has been open, seconds."""
        with self._transaction():
            self._changed("UPDATE round SET elapsed_s = ? WHERE number = ?", elapsed_s, number)

    def close_round(
        self, number: int, uploads: Sequence[str], *, open_from: int | None = None, reason: str = "the round closed"
    ) -> tuple[str, ...]:
        """Fixes the cohort: from now on the merge is a pure function of the journal. What comes too late expires.

        Args:
            number: The round, which is open.
            uploads: Ids of the round's durable uploads: all of them.
            open_from: The first round whose assignments stay open; None: the next one.
            reason: Why the others do not.

        Returns:
            The clients whose assignments expired.
        """
        open_from = number + 1 if open_from is None else open_from
        with self._transaction():
            durable = {row.id for row in self.uploads(number) if row.state is UploadState.DURABLE}
            if durable != set(uploads):
                raise ValueError(f"round {number} has {len(durable)} durable uploads, {len(uploads)} others were named")
            self._changed("UPDATE round SET phase = 'closing' WHERE number = ? AND phase = 'open'", number)
            expired = tuple(row.client for row in self.open_assignments() if row.round < open_from)
            self._do(
                "UPDATE assignment SET state = 'expired', reason = ? WHERE round < ? AND state = 'open'",
                *(reason, open_from),
            )
            for row in self.uploads_under_way():
                if row.round < open_from and row.state is UploadState.RECEIVING:
                    self._do("UPDATE upload SET state = 'expired' WHERE id = ?", row.id)
            return expired

    def commit_round(self, number: int, version: VersionRow, report: str) -> None:
        """Makes a merge final, all or nothing: the version, its uploads, the round, the report (JSON lines)."""
        with self._transaction():
            self._insert("version", version)
            self._do("UPDATE upload SET state = 'merged' WHERE round = ? AND state = 'durable'", number)
            self._changed("UPDATE round SET phase = 'committed' WHERE number = ? AND phase = 'closing'", number)
            self._do("INSERT INTO report (round, lines) VALUES (?, ?)", number, report)

    def rounds(self) -> list[RoundRow]:
        """All rounds that were opened, in order."""
        return self._all(_round, "SELECT * FROM round ORDER BY number")

    def round(self, number: int) -> RoundRow:
        """One round that was opened."""
        (row,) = self._all(_round, "SELECT * FROM round WHERE number = ?", number)
        return row

    def versions(self) -> list[VersionRow]:
        """All versions, in order."""
        return self._all(_version, "SELECT * FROM version ORDER BY version")

    def reports(self, number: int) -> list[str]:
        """The merge report of a committed round, one JSON object a line; empty before."""
        row = self._one("SELECT lines FROM report WHERE round = ?", number)
        return [] if row is None else str(row["lines"]).splitlines()

    # ---- assignments and uploads

    def add_assignment(self, row: AssignmentRow) -> None:
        """Remembers an assignment, before it is told."""
        with self._transaction():
            self._insert("assignment", row)

    def settle_assignment(self, token: str, state: str, reason: str = "") -> None:
        """Says what became of an assignment (an :class:`~aggregator.store.rows.AssignmentState`)."""
        with self._transaction():
            self._changed(
                "UPDATE assignment SET state = ?, reason = ? WHERE token = ?", AssignmentState(state), reason, token
            )

    def assignment(self, token: str) -> AssignmentRow | None:
        """One assignment."""
        row = self._one("SELECT * FROM assignment WHERE token = ?", token)
        return None if row is None else _assignment(row)

    def assignment_of(self, number: int, client: str) -> AssignmentRow | None:
        """A client's assignment of a round; there is at most one."""
        row = self._one("SELECT * FROM assignment WHERE round = ? AND client = ?", number, client)
        return None if row is None else _assignment(row)

    def assignments(self, number: int) -> list[AssignmentRow]:
        """A round's assignments, by client."""
        return self._all(_assignment, "SELECT * FROM assignment WHERE round = ? ORDER BY client", number)

    def open_assignments(self) -> list[AssignmentRow]:
        """The assignments that an update may still come for, of all rounds, by round and client."""
        return self._all(_assignment, "SELECT * FROM assignment WHERE state = 'open' ORDER BY round, client")

    def versions_trained(self, after: int) -> set[int]:
        """The versions that updates are against: those that may still come, and those that are here.

        Args:
            after: Of updates that are here, only those that count in a later round.
        """
        rows = self._db.execute(
            "SELECT version FROM assignment WHERE state = 'open' UNION "
            "SELECT assignment.version FROM upload JOIN assignment USING (token) "
            "WHERE upload.round > ? AND upload.state IN ('durable', 'merged')",
            (after,),
        )
        return {row["version"] for row in rows}

    def add_upload(self, row: UploadRow) -> None:
        """Remembers an offered update; a client has one per round, refused ones apart."""
        with self._transaction():
            self._insert("upload", row)

    def upload_prefix(self, upload: str, have: int) -> None:
        """Remembers how many bytes of an upload are durable."""
        with self._transaction():
            self._changed("UPDATE upload SET have = ? WHERE id = ?", have, upload)

    def upload_durable(self, upload: str, round: int | None = None) -> None:
        """An upload is checked and stored; after this it may be acknowledged. Its assignment is submitted.

        Args:
            upload: Its id.
            round: The round it counts in, which is open; None: its assignment's.
        """
        with self._transaction():
            self._do("UPDATE upload SET round = coalesce(?, round) WHERE id = ? AND state = 'receiving'", round, upload)
            self._changed(
                "UPDATE upload SET state = 'durable', have = size WHERE id = ? AND state IN ('receiving', 'durable')",
                upload,
            )
            self._do(
                "UPDATE assignment SET state = 'submitted' WHERE token = (SELECT token FROM upload WHERE id = ?)",
                upload,
            )

    def upload_rejected(self, upload: str, code: str, reason: str) -> None:
        """An upload is refused; what was acknowledged cannot be."""
        with self._transaction():
            self._changed(
                "UPDATE upload SET state = 'rejected', code = ?, reason = ? "
                "WHERE id = ? AND state NOT IN ('durable', 'merged')",
                *(code, reason, upload),
            )

    def upload(self, upload: str) -> UploadRow | None:
        """One upload."""
        row = self._one("SELECT * FROM upload WHERE id = ?", upload)
        return None if row is None else _upload(row)

    def uploads(self, number: int) -> list[UploadRow]:
        """A round's uploads, by client; refused ones too."""
        return self._all(_upload, "SELECT * FROM upload WHERE round = ? ORDER BY client, id", number)

    def uploads_under_way(self) -> list[UploadRow]:
        """The uploads that are being received, or are durable and not merged yet, of all rounds."""
        return self._all(
            _upload, "SELECT * FROM upload WHERE state IN ('receiving', 'durable') ORDER BY round, client, id"
        )

    def uploads_of(self, token: str) -> list[UploadRow]:
        """The uploads offered for one assignment; refused ones too."""
        return self._all(_upload, "SELECT * FROM upload WHERE token = ? ORDER BY id", token)

    def add_answer(self, row: AnswerRow) -> None:
        """Remembers what a client answered to a probe, which may then be acknowledged. Its assignment is submitted."""
        with self._transaction():
            self._insert("answer", row)
            self._changed("UPDATE assignment SET state = 'submitted' WHERE token = ? AND state = 'open'", row.token)

    def answers(self, number: int) -> list[AnswerRow]:
        """A round's answers, by client."""
        return self._all(
            lambda row: AnswerRow(**row),
            "SELECT answer.* FROM answer JOIN assignment USING (token) WHERE round = ? ORDER BY answer.client",
            number,
        )

    # ---- small facts

    def get_meta(self, key: str) -> str | None:
        """A fact about the run, such as its number of rounds."""
        row = self._one("SELECT value FROM meta WHERE key = ?", key)
        return None if row is None else str(row["value"])

    def set_meta(self, key: str, value: str) -> None:
        """Remembers a fact about the run."""
        with self._transaction():
            self._do(
                "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value
            )

    # ---- SQLite

    def _prepare(self) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "mmap_size = 0"):
            self._do(f"PRAGMA {pragma}")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0 and not self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif found != SCHEMA_VERSION:
            raise StoreCorrupt(
                f"{self._path} has schema {found}, this software reads {SCHEMA_VERSION}: use the version that wrote it"
            )
        faults = [row[0] for row in self._db.execute("PRAGMA integrity_check(3)") if row[0] != "ok"]
        faults += [f"a row of {row[0]} refers to nothing" for row in self._db.execute("PRAGMA foreign_key_check")]
        if faults:
            raise StoreCorrupt(f"{self._path} is damaged ({'; '.join(faults[:3])}); restore it from a backup")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._do("BEGIN IMMEDIATE")
        try:
            yield
            self._do("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if _no_room(error):
                raise self._full() from error
            raise

    def _full(self) -> StoreFull:
        return StoreFull(f"the disk of {self._path} is full: free some space; nothing was lost")

    def _do(self, sql: str, *values: object) -> int:
        return self._db.execute(sql, values).rowcount

    def _changed(self, sql: str, *values: object) -> None:
        if self._do(sql, *values) != 1:
            raise ValueError(f"nothing in the journal matches {values[-1]!r} for: {sql}")

    def _insert(self, table: str, row: Any) -> None:
        values = asdict(row)
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        self._do(f"INSERT INTO {table} ({names}) VALUES ({marks})", *values.values())

    def _enrol(self, key: str, name: str, now: float) -> None:
        self._do(
            "INSERT INTO client (key, name, status, enrolled_at) VALUES (?, ?, 'enrolled', ?) "
            "ON CONFLICT (key) DO UPDATE SET name = excluded.name, status = 'enrolled'",
            *(key, name, now),
        )

    def _one(self, sql: str, *values: object) -> _Row | None:
        row: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        return None if row is None else dict(row)

    def _all(self, kind: Callable[[_Row], T], sql: str, *values: object) -> list[T]:
        return [kind(dict(row)) for row in self._db.execute(sql, values)]


def _no_room(error: BaseException) -> bool:
    """Whether the database, or the file of shared memory beside it, could not grow."""
    full = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
    return getattr(error, "sqlite_errorcode", None) in full


def _client(row: _Row) -> ClientRow:
    return ClientRow(**{**row, "status": ClientStatus(row["status"])})


def _round(row: _Row) -> RoundRow:
    return RoundRow(**{**row, "phase": RoundPhase(row["phase"])})


def _version(row: _Row) -> VersionRow:
    return VersionRow(**{**row, "codec": Codec(row["codec"])})


def _assignment(row: _Row) -> AssignmentRow:
    return AssignmentRow(**{**row, "state": AssignmentState(row["state"])})


def _upload(row: _Row) -> UploadRow:
    return UploadRow(**{**row, "state": UploadState(row["state"])})
