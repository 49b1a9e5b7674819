"""Where a run stood when its daemon ended: the round and the version, read back from the journal."""

from __future__ import annotations

from types import MappingProxyType

from aggregator.rounds.asynchronous import Buffer
from aggregator.rounds.machine import Member, MemberState, Phase, Round
from aggregator.rounds.work import StoredVersion
from aggregator.store.journal import AssignmentRow, Journal, VersionRow
from aggregator.store.rows import AssignmentState, RoundPhase, UploadState

__all__ = ["recovered_buffer", "recovered_round", "stored_version", "version_row"]

_STATES = {
    AssignmentState.DECLINED: MemberState.DECLINED,
    AssignmentState.REJECTED: MemberState.REJECTED,
    AssignmentState.EXPIRED: MemberState.DECLINED,
}


def recovered_round(journal: Journal, now: float) -> Round:
    """The round to go on with.

    The time the daemon was down does not count against the deadline: only the age journalled does.

    Args:
        journal: Open journal.
        now: The time, on the clock that the round will be run by, seconds.

    Returns:
        A gathering round, an open one with its cohort, or one to be merged (again: merging is a pure function).
    """
    rows, version = journal.rounds(), journal.versions()[-1].version
    if not rows or rows[-1].phase is RoundPhase.COMMITTED:
        return Round(number=len(rows) + 1, version=version)
    last = rows[-1]
    found = Round(
        number=last.number,
        version=version,
        phase=Phase.OPEN,
        armed_at=now - last.elapsed_s,
        members=MappingProxyType({row.client: _member(row, now) for row in journal.assignments(last.number)}),
    )
    for row in journal.uploads(last.number):
        if row.state is UploadState.DURABLE:
            found = found.submitted_by(row.client, now)
    for answer in journal.answers(last.number):
        found = found.submitted_by(answer.client, now)
    return found.closed() if last.phase is RoundPhase.CLOSING else found


def recovered_buffer(journal: Journal, now: float) -> Buffer:
    """The buffer to go on with, of a run in ``async`` mode.

    When a device was given its assignment is not journalled: each has its whole time anew.

    Args:
        journal: Open journal.
        now: The time, on the clock that the run will go on by, seconds.

    Returns:
        An open buffer, or one to be merged (again).
    """
    live = journal.versions()[-1].version
    closing = any(row.phase is RoundPhase.CLOSING for row in journal.rounds())
    number = live + 1
    members = {row.client: _member(row, now) for row in (*journal.assignments(number), *journal.open_assignments())}
    for counts_in, state in ((number, MemberState.SUBMITTED), (number + 1, MemberState.EARLY)):
        for row in journal.uploads(counts_in):
            given = journal.assignment(row.token)
            if row.state is UploadState.DURABLE and given is not None:
                members[row.client] = Member(state=state, round=given.round, since=now)
    found = Buffer(number=number, version=live, members=MappingProxyType(members))
    return found.closed() if closing else found


def version_row(version: StoredVersion, *, round_number: int) -> VersionRow:
    """A version as it is journalled.

    Args:
        version: Where it lies.
        round_number: The round that made it; 0 for version 0.
    """
    return VersionRow(
        version=version.version,
        round=round_number,
        state_digest=version.state,
        body_digest=version.body,
        codec=version.codec,
        slots=version.slots,
        final_digest=version.final,
    )


def stored_version(row: VersionRow) -> StoredVersion:
    """A version out of the journal."""
    return StoredVersion(
        version=row.version,
        state=row.state_digest,
        body=row.body_digest,
        codec=row.codec,
        slots=row.slots,
        final=row.final_digest,
    )


def _member(row: AssignmentRow, now: float) -> Member:
    return Member(state=_STATES.get(row.state, MemberState.ASSIGNED), round=row.round, since=now, reason=row.reason)
