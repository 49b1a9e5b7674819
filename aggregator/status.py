"""What ``status`` says: where the run is, and *why the round is waiting*: who is missing, how far, how long yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aggregator.config import RunConfig
from aggregator.federation import Federation
from aggregator.hub import PeerInfo
from aggregator.privacy.accountant import epsilon
from aggregator.rounds.asynchronous import Buffer
from aggregator.rounds.machine import MemberState, Phase, Round
from protocol.identity import client_id

__all__ = ["Status", "merges_epsilon", "run_status"]

_AT_WORK = frozenset({MemberState.ASSIGNED, MemberState.LATE})
_AWAITED = _AT_WORK | {MemberState.INVITED}
_OUT = frozenset({MemberState.DECLINED, MemberState.REJECTED})


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment; all of it plain data."""

    run: str
    """Run id."""
    round: int
    """The current round, from 1; one more than ``rounds`` when the run is finished."""
    rounds: int
    """Rounds in all."""
    version: int
    """Version of the global state."""
    phase: str
    """``gathering``, ``open``, ``merging`` or ``finished``."""
    waiting_for: str
    """Why nothing happens just now, in one line."""
    deadline_in_s: float | None
    """Seconds to the round's deadline, negative once it has passed; None: there is none."""
    epsilon: float | None
    """``ε`` at ``server_delta`` of all merges so far, for a device that was in each; None: they are without noise."""
    devices: tuple[Mapping[str, Any], ...]
    """Per device: id, name, state, reason, last seen (seconds ago), versions that what it trains is behind (None: it
    does not), bytes received of its update, bytes in all."""


def run_status(federation: Federation, devices: Mapping[str, PeerInfo], names: Mapping[str, str], now: float) -> Status:
    """Says where a run is.

    Args:
        federation: The run.
        devices: What the hub knows of each device.
        names: Enrolled keys and what the operator calls them.
        now: The time, seconds.
    """
    state = federation.round
    deadline = None if isinstance(state, Buffer) else state.deadline(federation.config)
    left = None if deadline is None or state.phase is not Phase.OPEN else deadline - now
    received = {client: (have, size) for client, have, size in federation.received()}
    rows = tuple(_device(state, key, names[key], devices.get(key), received.get(key), now) for key in sorted(names))
    return Status(
        run=federation.config.run,
        round=state.number,
        rounds=federation.config.rounds,
        version=federation.version.version,
        phase="finished" if federation.finished else state.phase,
        waiting_for=_why(federation, rows, left, now),
        deadline_in_s=left,
        epsilon=merges_epsilon(federation.config, state.number - 1),
        devices=rows,
    )


def merges_epsilon(config: RunConfig, merges: int) -> float | None:
    """``ε`` of so many merges; None if they are without noise."""
    if not config.server_noise_multiplier:
        return None
    return epsilon(config.server_noise_multiplier, merges, config.server_delta)


def _device(
    state: Round | Buffer, key: str, name: str, info: PeerInfo | None, held: tuple[int, int] | None, now: float
) -> Mapping[str, Any]:
    member = state.members.get(key)
    return {
        "id": client_id(key),
        "name": name,
        "state": "idle" if member is None else str(member.state),
        "reason": "" if member is None else member.reason,
        "staleness": None if member is None or member.state not in _AT_WORK else state.filling - member.round,
        "seen_s_ago": None if info is None else round(now - info.heard_at, 1),
        "update_bytes": None if held is None else held[0],
        "update_size": None if held is None else held[1],
        "bytes_in": 0 if info is None else info.bytes_in,
        "bytes_out": 0 if info is None else info.bytes_out,
    }


def _why(federation: Federation, rows: tuple[Mapping[str, Any], ...], left: float | None, now: float) -> str:
    state, config = federation.round, federation.config
    if federation.finished:
        return "nothing: all rounds are merged; `extend` adds more"
    if state.phase is Phase.MERGING:
        return _merge(federation, now)
    if isinstance(state, Buffer):
        return _buffer(federation, state, rows)
    if state.phase is Phase.GATHERING:
        here = len(state.present(config, now))
        return f"clients: {here} of {config.cohort_size} are here ({len(rows)} enrolled)"
    missing = [_at_work(row) for row in rows if row["state"] in _AWAITED]
    free = config.cohort_size - len(state.submitted) - len(missing)
    missing += [f"{free} more, whoever asks next"] if free > 0 else []
    told = f"updates: {len(state.submitted)} of {config.cohort_size} are in; missing: {'; '.join(missing)}"
    clock = "" if left is None else f"; deadline in {left:.0f} s, then {config.least_updates} suffice"
    return told + _out(rows) + clock


def _buffer(federation: Federation, state: Buffer, rows: tuple[Mapping[str, Any], ...]) -> str:
    told = f"updates: {len(state.submitted)} of {federation.config.cohort_size} are in the buffer"
    at_work = "; ".join(_at_work(row) for row in rows if row["state"] in _AT_WORK)
    return f"{told}; at work: {at_work or 'nobody, until somebody asks'}" + _out(rows)


def _out(rows: tuple[Mapping[str, Any], ...]) -> str:
    out = [f"{_name(row)} ({row['state']}: {row['reason']})" for row in rows if row["state"] in _OUT]
    return f"; out: {', '.join(out)}" if out else ""


def _merge(federation: Federation, now: float) -> str:
    told, failure = f"the merge of {len(federation.round.submitted)} updates", federation.merge_failure
    if failure is None:
        return told
    left = max(0.0, failure.retry_at - now)
    return f"{told}, which failed {failure.tries} times ({failure.reason}); the next try is in {left:.0f} s"


def _name(row: Mapping[str, Any]) -> str:
    return str(row["name"] or row["id"])


def _at_work(row: Mapping[str, Any]) -> str:
    seen = "never seen" if row["seen_s_ago"] is None else f"seen {row['seen_s_ago']:.0f} s ago"
    sent = "" if row["update_bytes"] is None else f", {row['update_bytes']:,} of {row['update_size']:,} bytes in"
    behind = f", staleness {row['staleness']}" if row["staleness"] else ""
    return f"{_name(row)} ({row['state']}{behind}, {seen}{sent})"
