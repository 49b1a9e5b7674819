"""The aggregator's core: what a client's message leads to. No sockets and no clock: messages and ``now`` come in.

It owns the round, a value of :mod:`aggregator.rounds.machine` or :mod:`aggregator.rounds.asynchronous`, and the
hand-outs that devices are at work with, and writes every decision to the journal before it tells anybody. Slow work
(checking an upload, merging) goes to an executor; :meth:`Federation.poll` collects what is done.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from aggregator.config import Mode, RunConfig
from aggregator.errors import ConfigError, StoreFull
from aggregator.feasibility import check_feasible
from aggregator.intake.admission import check_device, check_report
from aggregator.intake.updates import KEPT, Decision, Intake, stale
from aggregator.merge.weighting import Weighting
from aggregator.rounds.assigning import Assignments
from aggregator.rounds.asynchronous import Buffer
from aggregator.rounds.handouts import ServedVersions
from aggregator.rounds.layers import SelectionJob, selected_layers
from aggregator.rounds.machine import DELIVERED, Phase, Round, Wait
from aggregator.rounds.merge_rule import MergeRule, merge_rule, private_rule
from aggregator.rounds.merging import MergeFailure, Merging
from aggregator.rounds.recovery import recovered_buffer, recovered_round, stored_version, version_row
from aggregator.rounds.work import MergeJob, StoredUpdate, StoredVersion
from aggregator.store.journal import AnswerRow, AssignmentRow, Journal, RoundRow, UploadRow
from aggregator.store.objects import ObjectStore
from aggregator.store.retention import Collector
from aggregator.store.rows import AssignmentState, UploadState
from aggregator.workers.cluster import RayCluster
from protocol import limits, messages
from protocol.assignment import Assignment
from protocol.errors import NackCode, RemoteProtocolError
from protocol.manifest import Manifest

__all__ = ["Executors", "Federation", "Reply"]

ELAPSED_EVERY_S = 5.0
"""How often a round's age is journalled: what a crash can add to a deadline at most."""
_NOISE_SECRET = "noise_secret"
"""Key of the journal's ``meta``; its value, in hex, takes the noise off the versions, so it never leaves the home."""
_UNFIT = frozenset(
    {
        *(NackCode.SHAPE, NackCode.NUM_EXAMPLES, NackCode.NON_FINITE, NackCode.NORM, NackCode.DIGEST),
        NackCode.TOO_LARGE,
    }
)
"""Refusals of an update after which the round does not wait for its client."""


@dataclass(frozen=True)
class Reply:
    """A message for a client that is not the immediate answer to what it just sent."""

    client: str
    """Its key."""
    message: messages.Message
    """What to tell it."""


@dataclass(frozen=True, kw_only=True)
class Executors:
    """Who does the slow work."""

    verify: Executor
    """Checks and fsyncs uploads and collects what nothing needs any more, one after the other; a thread does."""
    merge: Executor
    """Merges cohorts; a process of its own, so that the daemon keeps answering."""
    merge_workers: int | RayCluster = 1
    """Processes that one merge may use, or a cluster."""


class Federation:
    """One run: its round, its updates, its versions.

    Args:
        config: The operator's settings, with the current number of rounds.
        manifest: The run's universe.
        journal: Open journal, with at least version 0.
        objects: The object store.
        executors: Who does the slow work.
        now: The time, on the clock of all later calls, seconds.
        new_token: Source of assignment tokens, 32 hex digits.
    """

    def __init__(
        self,
        config: RunConfig,
        manifest: Manifest,
        journal: Journal,
        objects: ObjectStore,
        executors: Executors,
        now: float,
        new_token: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        check_feasible(config, manifest)
        self.config, self.manifest = config, manifest
        self._journal, self._objects = journal, objects
        self._assignments = Assignments(config, manifest, journal, new_token)
        self._manifest_json = manifest.to_json()
        self._intake = Intake(config, manifest, journal, objects, executors.verify)
        self._versions = ServedVersions(objects, manifest, stored_version(journal.versions()[-1]))
        self._merging, self._merge_workers = Merging(executors.merge), executors.merge_workers
        self._collector = Collector(journal, objects, executors.verify, config.keep_versions)
        self._examples: dict[str, int] = {}
        self._elapsed_at, self._opened = now, len(journal.rounds())
        self._layers = selected_layers(journal, config.probe_round)
        recovered = recovered_buffer if config.mode is Mode.ASYNC else recovered_round
        self.round: Round | Buffer = recovered(journal, now)
        self._resume()

    # ---- what a client may say

    def ready(self, client: str, message: messages.Ready, now: float) -> messages.Message:
        """Answers a client that asks for work: ``TASK``, ``WAIT`` or ``FINISHED``.

        Raises:
            RemoteProtocolError: This device cannot take part.
        """
        check_device(self.config, self.manifest, message)
        rank = message.rank or self.config.default_rank
        slots = self.config.slots(self.manifest) if message.residual else rank
        if self.finished:
            final = self._versions.live.offer_final(slots)
            return messages.Finished(version=self.version.version, rank=rank, handout=final)
        self._examples[client] = message.num_examples
        after, answer = self.round.asked(self.config, client, now)
        if after.phase is Phase.OPEN:
            self._open(after.number, lambda: self._population(after, now))
        self.round = after
        if isinstance(answer, Wait):
            poll_ms = int(1000 * self.config.poll_s)
            reason = answer.reason[: limits.REASON_MAX_CHARS]
            return messages.Wait(after_ms=poll_ms // 2, window_ms=poll_ms, reason=reason)
        return self._task(self._assignment(client, rank, slots), client, now)

    def get(self, message: messages.Get) -> messages.Data:
        """Serves one piece of the manifest or of a hand-out.

        Raises:
            RemoteProtocolError: There is no such object now, or nothing at that offset.
        """
        if message.digest == self.manifest.digest:
            piece: bytes | None = self._manifest_json[message.offset : message.offset + message.length]
        else:
            piece = self._versions.piece(message.digest, message.offset, message.length)
        if not piece:
            raise RemoteProtocolError("no such object now, or nothing there; ask for work again", NackCode.UNKNOWN)
        return messages.Data(digest=message.digest, offset=message.offset, payload=piece)

    def offer(self, client: str, message: messages.Offer, now: float) -> messages.Message | None:
        """Answers an offered update: ``CREDIT``, ``ACK`` (already here), ``NACK``; None while it is being checked.

        Raises:
            RemoteProtocolError: The offer cannot be taken.
        """
        given = self._assignments.held_by(client, message.token)
        try:
            return self._intake.offer(client, message, given, now)
        except RemoteProtocolError as error:
            if error.code in _UNFIT:
                self._reject(given, str(error), now)
            raise

    def chunk(self, client: str, message: messages.Chunk, now: float) -> messages.Message | None:
        """Takes one piece of an upload: ``CREDIT``, or None once all is here and being checked.

        Raises:
            RemoteProtocolError: The piece cannot be taken.
        """
        return self._intake.chunk(client, message, now)

    def report(self, client: str, message: messages.Report, now: float) -> messages.Ack:
        """Takes the answer to a probe; it is in the journal when it is acknowledged.

        Raises:
            RemoteProtocolError: It cannot be taken.
        """
        given = self._assignments.held_by(client, message.token)
        if given.state is AssignmentState.SUBMITTED:
            return messages.Ack(ref=message.token)
        if given.state is not AssignmentState.OPEN:
            raise stale(given)
        try:
            check_report(self.config, self.manifest, Assignment.from_json(given.document), message)
        except RemoteProtocolError as error:
            self._reject(given, str(error)[: limits.REASON_MAX_CHARS], now)
            raise
        metrics = json.dumps(dict(message.metrics), sort_keys=True)
        self._journal.add_answer(
            AnswerRow(token=given.token, client=client, num_examples=message.num_examples, metrics_json=metrics)
        )
        self.round = self.round.submitted_by(client, now)
        return messages.Ack(ref=message.token)

    def decline(self, client: str, message: messages.Decline, now: float) -> messages.Ack:
        """Takes a client's refusal of its assignment.

        Raises:
            RemoteProtocolError: It has no such assignment.
        """
        given = self._assignments.held_by(client, message.token)
        if given.state is AssignmentState.OPEN:
            self._journal.settle_assignment(message.token, AssignmentState.DECLINED, message.reason)
            self._intake.drop(now, [client])
            self.round = self.round.declined_by(client, message.reason, now)
        return messages.Ack(ref=message.token)

    def revoked(self, client: str, now: float) -> None:
        """The operator revoked a device: the round does not wait for it. What it delivered before stays."""
        self._intake.drop(now, [client])
        member = self.round.members.get(client)
        if member is not None and member.state not in DELIVERED:
            self.round = self.round.declined_by(client, "its key was revoked", now)

    # ---- what time and the workers bring

    def poll(self, now: float) -> list[Reply]:
        """Collects finished work, closes and commits what is due.

        Returns:
            Messages for clients whose uploads were decided, or may go on.

        Raises:
            StoreCorrupt: An object that the run needs is missing or damaged.
            OSError: The disk failed.
        """
        self._collector.poll()
        replies = [self._answered(decision, now) for decision in self._intake.decided()]
        replies += [Reply(client, credit) for client, credit in self._intake.granted(now)]
        self.round = self.round.ticked(self.config, now)
        self._journal_elapsed(now)
        replies += self._close(now)
        while (merged := self._merging.poll(now)) is not None:
            self._commit(*merged, now)
            replies += self._close(now)
        return replies

    def next_wakeup(self, now: float) -> float | None:
        """When :meth:`poll` should be called at the latest, if nothing else happens."""
        times = [self._merging.next_event(now), self.round.next_event(self.config)]
        if self.round.elapsed_s(now) is not None:
            times.append(now + ELAPSED_EVERY_S)
        if self._may_close(now):
            times.append(now)
        return min((time for time in times if time is not None), default=None)

    @property
    def finished(self) -> bool:
        """Whether all rounds are merged."""
        return self.round.number > self.config.rounds

    @property
    def version(self) -> StoredVersion:
        """The live version."""
        return self._versions.live.version

    @property
    def merge_failure(self) -> MergeFailure | None:
        """Why a closed round is not merged yet; None if nothing is wrong."""
        return self._merging.failure

    def received(self) -> Iterator[tuple[str, int, int]]:
        """``(client key, bytes held, size)`` of the uploads that are open, or durable and not merged yet."""
        for row in self._journal.uploads_under_way():
            held = self._intake.held(row.id)
            if row.state in KEPT:
                yield row.client, row.size, row.size
            elif held is not None:
                yield row.client, held, row.size

    def extend(self, rounds: int) -> int:
        """Adds rounds to the run; returns how many it has now.

        Raises:
            ConfigError: Not even one is added, or so many cost more privacy than the run may.
        """
        if rounds < 1:
            raise ConfigError(f"a run is extended by at least 1 round, not by {rounds}")
        extended = replace(self.config, rounds=self.config.rounds + rounds)
        check_feasible(extended, self.manifest)
        self.config = extended
        self._journal.set_meta("rounds", str(self.config.rounds))
        return self.config.rounds

    # ---- assignments

    def _assignment(self, client: str, rank: int, slots: int) -> Assignment:
        """A member's assignment: the one it has, or a new one."""
        given = self._assignments.given_back(client, self.round.members[client].round)
        if given is not None:
            return given
        return self._assignments.give(
            client, self.round.number, self._versions.live, rank=rank, slots=slots, layers=self._layers
        )

    def _task(self, assignment: Assignment, client: str, now: float) -> messages.Task:
        left = self.round.time_left_s(self.config, client, now)
        return messages.Task(payload=replace(assignment, deadline_s=left).to_json())

    # ---- updates

    def _answered(self, decision: Decision, now: float) -> Reply:
        """Makes a checked upload durable or refuses it, and says which."""
        row, error = decision.row, decision.error
        given = self._assignments.held_by(row.client, row.token)
        if error is None and given.state is not AssignmentState.OPEN:
            error = stale(given)
        if error is None:
            self._open(self.round.filling)
            self._journal.upload_durable(row.id, self.round.filling)
            self.round = self.round.submitted_by(row.client, now)
            return Reply(row.client, messages.Ack(ref=row.id, q=decision.q))
        reason = str(error)[: limits.REASON_MAX_CHARS]
        self._journal.upload_rejected(row.id, error.code, reason)
        if error.code in _UNFIT:
            self._reject(given, reason, now)
        return Reply(row.client, messages.Nack(code=error.code, reason=reason, ref=row.id, q=decision.q))

    def _reject(self, given: AssignmentRow, reason: str, now: float) -> None:
        if given.state is AssignmentState.OPEN:
            self._journal.settle_assignment(given.token, AssignmentState.REJECTED, reason)
            self._intake.drop(now, [given.client])
            self.round = self.round.rejected(given.client, reason, now)

    # ---- rounds

    def _open(self, number: int, population: Callable[[], dict[str, int]] = dict) -> None:
        """Has a round in the journal before anything of it is, and whom its cohort is drawn from."""
        if number > self._opened:
            row = RoundRow(
                number=number,
                version=self.version.version,
                seed=self.config.seed,
                population_json=json.dumps(population(), sort_keys=True),
            )
            self._journal.open_round(row)
            self._opened = number

    def _population(self, opened: Round | Buffer, now: float) -> dict[str, int]:
        """Examples by client, as last named, of all present as a round opens, where the weights ask for them."""
        if self.config.weights is not Weighting.HORVITZ_THOMPSON or isinstance(opened, Buffer):
            return {}
        return {client: self._examples[client] for client in {*opened.present(self.config, now), *opened.members}}

    def _journal_elapsed(self, now: float) -> None:
        elapsed_s = self.round.elapsed_s(now)
        if elapsed_s is not None and now - self._elapsed_at >= ELAPSED_EVERY_S:
            self._journal.round_elapsed(self.round.number, elapsed_s)
            self._elapsed_at = now

    def _may_close(self, now: float) -> bool:
        return self.round.complete(self.config, now) and not self._collector.busy

    def _close(self, now: float) -> list[Reply]:
        """Where the round is complete: fixes its cohort, has it merged, and turns away uploads that come too late."""
        if not self._may_close(now):
            return []
        number, first_open = self.round.number, self.round.first_open(self.config)
        too_stale = f"it is more than {self.config.staleness_max} versions behind"
        reason = "the round closed" if first_open > number else too_stale
        receiving = [row for row in self._journal.uploads_under_way() if row.state is UploadState.RECEIVING]
        cohort = [row.id for row in self._durable()]
        expired = self._journal.close_round(number, cohort, open_from=first_open, reason=reason)
        self.round = self.round.closed(expired)
        self._merge()
        dropped = self._intake.drop(now, expired)
        self._intake.expire(row.id for row in receiving if row.round < first_open)
        told = f"your update was not in before its assignment was over ({reason}); ask for work again"
        return [Reply(key, messages.Nack(code=NackCode.STALE, reason=told, ref=upload)) for key, upload in dropped]

    def _durable(self) -> list[UploadRow]:
        """The cohort, in the order of the merge."""
        rows = [row for row in self._journal.uploads(self.round.number) if row.state is UploadState.DURABLE]
        return sorted(rows, key=lambda row: row.client)

    def _merge(self) -> None:
        number = self.round.number
        if self.config.probe_in(number) is not None:
            self._merging.begin(self._selection(number))
            return
        given = {row.id: self._assignments.held_by(row.client, row.token) for row in self._durable()}
        versions = {row.version for row in given.values()} - {self.version.version}
        job = MergeJob(
            objects=self._objects.root,
            manifest=self._manifest_json,
            base=self.version,
            updates=tuple(_stored_update(row, given[row.id]) for row in self._durable()),
            round=number,
            seed=self.config.seed,
            earlier=tuple(stored_version(row) for row in self._journal.versions() if row.version in versions),
            workers=self._merge_workers,
            rule=self._rule(number),
            population=tuple(json.loads(self._journal.round(number).population_json).items()),
            last=number >= self.config.rounds,
        )
        self._merging.begin(job)

    def _selection(self, number: int) -> SelectionJob:
        return SelectionJob(
            base=self.version,
            round=number,
            answers=tuple(self._journal.answers(number)),
            candidates=self.manifest.layers,
            kept_layers=self.config.kept_layers,
            weighting=self.config.weights,
        )

    def _rule(self, number: int) -> MergeRule:
        """What the round is merged by; the same after a restart, its noise too."""
        rule = merge_rule(self.config, number)
        if not self.config.server_noise_multiplier:
            return rule
        secret = self._journal.get_meta(_NOISE_SECRET)
        if secret is None:
            secret = secrets.token_hex(32)
            self._journal.set_meta(_NOISE_SECRET, secret)
        return private_rule(rule, self.config, number, bytes.fromhex(secret), [row.sha256 for row in self._durable()])

    def _commit(self, version: StoredVersion, report: tuple[str, ...], now: float) -> None:
        """Makes a merge final; where the journal has no room for it, it is tried again."""
        row = version_row(version, round_number=self.round.number)
        try:
            self._journal.commit_round(self.round.number, row, "\n".join(report))
        except StoreFull as error:
            self._merging.failed(error, now)
            return
        self._merging.end()
        self._layers = selected_layers(self._journal, self.config.probe_round)
        self._collector.begin()
        self._versions.follow(version, {given.version for given in self._journal.open_assignments()})
        self.round = self.round.following(version.version)

    def _resume(self) -> None:
        """Takes a recovered round up again: its hand-outs are served, a closed cohort is merged."""
        versions = {row.version: stored_version(row) for row in self._journal.versions()}
        for given in (*self._journal.assignments(self.round.number), *self._journal.open_assignments()):
            self._versions.of(versions[given.version]).offer_again(Assignment.from_json(given.document))
        if self.round.phase is Phase.MERGING:
            self._merge()


def _stored_update(row: UploadRow, given: AssignmentRow) -> StoredUpdate:
    return StoredUpdate(client=row.client, num_examples=row.num_examples, sha256=row.sha256, assignment=given.document)
