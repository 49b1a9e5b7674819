"""What the operator can have done to a run, by the live daemon or, where none runs, on the journal itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

from aggregator.errors import ConfigError, HomeError
from aggregator.feasibility import check_feasible
from aggregator.gate.enrolment import Enrolment
from aggregator.runs import current_config
from aggregator.status import Status, merges_epsilon
from aggregator.store.home import Home
from aggregator.store.journal import Journal, VersionRow
from aggregator.store.objects import ObjectStore
from aggregator.store.rows import RoundPhase
from protocol.errors import RemoteProtocolError
from protocol.identity import client_id
from protocol.typed import Fields

__all__ = ["Operations", "Run", "StoppedRun"]

Result = dict[str, Any]
_EXPIRES_MAX_S = 366 * 86_400.0
_ROUNDS_MAX = 1_000_000


class Run(Protocol):
    """The run that is operated on."""

    def status(self, names: Mapping[str, str]) -> Status:
        """Where it is, and why it waits; ``names`` are the enrolled keys' names."""

    def revoked(self, key: str) -> None:
        """A key was revoked just now."""

    def extend(self, rounds: int) -> int:
        """Adds rounds; returns how many there are now."""

    def stop(self) -> None:
        """Ends the daemon.

        Raises:
            HomeError: None runs.
        """


class Operations:
    """Carries out commands; each takes its arguments from a map and returns plain data.

    Args:
        home: The run's home.
        journal: Its journal.
        enrolment: Its devices.
        run: The run itself.
    """

    def __init__(self, home: Home, journal: Journal, enrolment: Enrolment, run: Run) -> None:
        self._home, self._journal, self._enrolment, self._run = home, journal, enrolment, run
        self._commands: Mapping[str, Callable[[Fields], Result]] = {
            "status": self._status,
            "invite": self._invite,
            "enroll": self._enroll,
            "revoke": self._revoke,
            "extend": self._extend,
            "version": self._version,
            "stop": self._stop,
        }

    def perform(self, command: str, arguments: Mapping[str, Any]) -> Result:
        """Carries out one command.

        Raises:
            AggregatorError: It cannot be done; the message says why.
        """
        if command not in self._commands:
            raise ConfigError(f"expected one of {', '.join(self._commands)}, got {command!r}")
        try:
            return self._commands[command](Fields(dict(arguments), command))
        except RemoteProtocolError as error:
            raise ConfigError(str(error)) from error

    def _status(self, _: Fields) -> Result:
        found = asdict(self._run.status(self._enrolment.names))
        return {**found, "devices": list(found["devices"])}

    def _invite(self, fields: Fields) -> Result:
        expires_s = fields.number("expires_s", minimum=1.0, maximum=_EXPIRES_MAX_S)
        endpoints = self._home.endpoints()
        if endpoints is None:
            raise HomeError(
                "a ticket names the port, and this home was never served: "
                f"start `tributary-aggregator serve {self._home.root}` first"
            )
        public, _ = self._home.server_keys()
        ticket = self._enrolment.invite(endpoints, public.decode(), expires_s)
        return {"ticket": ticket.to_json().decode(), "endpoint": ticket.endpoint, "expires_at": ticket.expires_at}

    def _enroll(self, fields: Fields) -> Result:
        row = self._enrolment.enrol(fields.text("key"), fields.text("name", limit=64))
        return {"id": client_id(row.key), "name": row.name, "status": row.status}

    def _revoke(self, fields: Fields) -> Result:
        row = self._enrolment.revoke(fields.text("who"))
        self._run.revoked(row.key)
        return {"id": client_id(row.key), "name": row.name, "status": row.status}

    def _extend(self, fields: Fields) -> Result:
        return {"rounds": self._run.extend(fields.integer("rounds", minimum=1, maximum=_ROUNDS_MAX))}

    def _version(self, fields: Fields) -> Result:
        rows = self._journal.versions()
        number = fields.optional_integer("version")
        wanted = rows[-1].version if number is None else number
        for row in rows:
            if row.version == wanted:
                self._check_kept(row, latest=rows[-1].version)
                return {"version": row.version, "round": row.round, "state": row.state_digest}
        raise ConfigError(f"there is no version {wanted}; the latest is {rows[-1].version}")

    def _check_kept(self, row: VersionRow, latest: int) -> None:
        kept = self._home.config().keep_versions
        collected = kept is not None and row.version < latest - kept
        if collected and not ObjectStore(self._home.objects).path(row.state_digest).exists():
            raise ConfigError(
                f"version {row.version} is not on disk any more: this run keeps {kept} before the latest, {latest}"
            )

    def _stop(self, _: Fields) -> Result:
        self._run.stop()
        return {"stopping": True}


class StoppedRun:
    """A run whose daemon does not run; the caller owns the home.

    Args:
        home: The run's home.
        journal: Its journal.
    """

    def __init__(self, home: Home, journal: Journal) -> None:
        self._home, self._journal = home, journal

    def status(self, names: Mapping[str, str]) -> Status:
        """Where the journal says it stands."""
        config, rounds = current_config(self._home, self._journal), self._journal.rounds()
        merged = sum(row.phase is RoundPhase.COMMITTED for row in rounds)
        done = merged >= config.rounds
        return Status(
            run=config.run,
            round=merged + 1,
            rounds=config.rounds,
            version=self._journal.versions()[-1].version,
            phase="finished" if done else "stopped",
            waiting_for=f"the daemon, which does not run: `tributary-aggregator serve {self._home.root}`",
            deadline_in_s=None,
            epsilon=merges_epsilon(config, merged),
            devices=tuple({"id": client_id(key), "name": name, "state": "unknown"} for key, name in names.items()),
        )

    def revoked(self, key: str) -> None:
        """The journal says it already."""

    def extend(self, rounds: int) -> int:
        """Adds rounds.

        Raises:
            ConfigError: So many cost more privacy than the run may.
        """
        config = current_config(self._home, self._journal)
        total = config.rounds + rounds
        check_feasible(replace(config, rounds=total), self._home.manifest())
        self._journal.set_meta("rounds", str(total))
        return total

    def stop(self) -> None:
        """Raises: there is nothing to stop."""
        raise HomeError(f"no daemon runs on {self._home.root}")
