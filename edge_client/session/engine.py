"""The client's side of a run as a state machine: events and the time in, effects and a wake-up time out.

No socket, thread, file or clock lives here, so the same engine serves a device, a simulation of thousands and a
property test that breaks the link at every point. Three things are kept apart, since they end at different times:

* the *link*, one connection, which may break at any moment and comes back by itself;
* the *activity*, what is asked of the aggregator now, which a broken link ends (every request can be repeated);
* the *job*, what the trainer does, which goes on whatever the link does.

What must not be lost, a trained result, is in the outbox before :class:`~edge_client.session.events.Trained` is fed in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from edge_client.errors import AggregatorError, BudgetSpentError, NotEnrolledError, TicketError
from edge_client.session.activities import Activity, Asking, Declining, Fetching, Job, Phase, Reporting, Uploading
from edge_client.session.events import (
    Complete,
    Effect,
    Event,
    Fail,
    Failed,
    Forget,
    Install,
    Installed,
    Open,
    Opened,
    Outgoing,
    Pause,
    Prepare,
    Prepared,
    Resume,
    Seal,
    Sealed,
    Settled,
    Stop,
    Tick,
    Train,
    Trained,
    Write,
)
from edge_client.session.link import Link
from edge_client.session.pacing import ChunkSizer, backoff_s
from edge_client.session.refusals import decline_reason, error_of
from edge_client.trainer import TrainerInfo
from edge_client.transport.base import AuthenticationFailed, Connected, Disconnected, Received
from protocol import limits
from protocol.assignment import Assignment, Handout
from protocol.errors import NackCode, RemoteProtocolError
from protocol.header import Frames
from protocol.identity import upload_id
from protocol.messages import (
    Ack,
    Bye,
    Chunk,
    Credit,
    Data,
    Decline,
    Finished,
    Get,
    Message,
    Nack,
    Offer,
    Pong,
    Ready,
    Report,
    Task,
    Wait,
    Welcome,
)
from protocol.transfer import Download, Sender

__all__ = ["Engine"]

VIOLATIONS_MAX = 5
"""Broken messages or objects in a row after which the aggregator, not the link, is to blame."""

_NOT_WANTED = frozenset({NackCode.STALE, NackCode.CONFLICT, NackCode.UNKNOWN})
_ABOUT_RESULTS = frozenset({NackCode.WRONG_BASE, NackCode.RANK, NackCode.NUM_EXAMPLES})
"""Terminal, and a result refused so stays so after the app has mended what is wrong: it is dropped."""


class Engine:
    """One client in one run.

    Args:
        run: The ticket's run id.
        public_key: This device's CURVE public key, Z85.
        sdk: Name and version of this software.
        rng: Jitter of back-off and of asking again.
        outbox: Results that an earlier process could not deliver.
        authentication_retries: How often a refused key is tried again; above 0 right after enrolment, when the
            aggregator may not have taken notice of the key yet.

    Attributes:
        wake_at: When to feed a :class:`~edge_client.session.events.Tick` at the latest; None once it is over.
    """

    def __init__(
        self,
        *,
        run: str,
        public_key: str,
        sdk: str,
        rng: random.Random,
        outbox: Sequence[Outgoing] = (),
        authentication_retries: int = 0,
    ) -> None:
        self._run, self._public_key, self._rng = run, public_key, rng
        self._effects: list[Effect] = []
        self._link = Link(lambda effect: self._effects.append(effect), sdk)
        self._outbox = list(outbox)
        self._authentication_retries = authentication_retries
        self._activity: Activity | None = None
        self._job: Job | None = None
        self._training: Assignment | None = None
        self._broken_off: Declining | None = None
        self._sealed_manifest: str | None = None
        self._info: TrainerInfo | None = None
        self._installing: Finished | None = None
        self._end: Phase | None = None
        self._paused = False
        self._sizer = ChunkSizer(limits.CHUNK_MAX_BYTES)
        self._failures = self._violations = 0
        self._now = 0.0
        self._act_at: float | None = None

    # -- What the driver sees ------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where the client is."""
        if self._end is not None:
            return self._end
        if self._job is not None:
            return {Job.PREPARE: Phase.PREPARING, Job.TRAIN: Phase.TRAINING, Job.INSTALL: Phase.INSTALLING}[self._job]
        if self._link.welcome is None:
            return Phase.CONNECTING if self._link.dialled else Phase.OFFLINE
        match self._activity:
            case Fetching():
                return Phase.FETCHING
            case Asking():
                return Phase.ASKING
            case Uploading() | Reporting() | Declining():
                return Phase.SENDING
            case None:
                return Phase.PAUSED if self._paused else Phase.WAITING

    @property
    def wake_at(self) -> float | None:
        """When to feed a tick at the latest."""
        if self.phase.over:
            return None
        times = (self._act_at, self._link.give_up_at(self._activity), self._link.ping_at())
        return min((time for time in times if time is not None), default=None)

    def start(self, now: float) -> list[Effect]:
        """Begins: call once, before anything is fed in."""
        self._now = now
        self._dial()
        return self._take()

    def feed(self, event: Event, now: float) -> list[Effect]:
        """Takes one event.

        Args:
            event: What happened.
            now: A monotonic time, seconds.

        Returns:
            What to do, in this order, before the next event is fed in.
        """
        self._now = now
        if self.phase.over:
            return []
        match event:
            case Received():
                self._received(event.frames)
            case Tick():
                self._tick()
            case Connected():
                self._link.greet(self._now)
            case Disconnected():
                self._lost()
            case AuthenticationFailed():
                self._refused_key()
            case Stop():
                self._finish(Phase.STOPPED, "stopped by the app")
            case Pause():
                self._paused = True
            case Resume():
                self._paused = False
                self._next()
            case Opened():
                self._opened(event)
            case Sealed():
                self._sealed(event)
            case Prepared():
                self._job, self._info = None, event.info
                self._next()
            case Trained():
                self._job = self._training = None
                self._outbox.append(event.item)
                self._next()
            case Installed():
                self._installed()
            case Failed():
                self._job_failed(event.error)
        return self._take()

    # -- The link ------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        give_up_at, ping_at = self._link.give_up_at(self._activity), self._link.ping_at()
        if give_up_at is not None and give_up_at <= self._now:
            self._lost()
        elif ping_at is not None and ping_at <= self._now:
            self._link.ping(self._now)
        if self._act_at is not None and self._act_at <= self._now:
            self._act_at = None
            if self._link.dialled:
                self._next()
            else:
                self._dial()

    def _dial(self) -> None:
        self._info = None
        self._link.dial(self._now)

    def _lost(self, after_s: float | None = None) -> None:
        """Drops the link and times the next try."""
        if isinstance(self._activity, Declining) and not isinstance(self._activity.error, BudgetSpentError):
            self._fail(self._activity.error)
        else:
            self._link.drop(self._now)
            self._later(after_s)

    def _refused_key(self) -> None:
        if self._authentication_retries > 0:
            self._authentication_retries -= 1
            self._lost()
            return
        self._fail(
            NotEnrolledError(
                "the aggregator does not know this device's key, or the operator revoked it: ask for a new ticket, "
                "or have the key enrolled by hand"
            )
        )

    def _violated(self, error: Exception) -> None:
        """The peer sent what it must not: a new connection may mend that, but not for ever."""
        self._violations += 1
        if self._violations >= VIOLATIONS_MAX or getattr(error, "code", None) is NackCode.INCOMPATIBLE:
            self._fail(AggregatorError(f"the aggregator breaks the protocol: {error}"))
        else:
            self._lost()

    # -- What to do next -----------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Starts the one thing that is due, if the link is up and free."""
        welcome = self._link.welcome
        if welcome is None or self._activity is not None or self._act_at is not None:
            return
        self._link.progressed(self._now)
        if self._broken_off is not None:
            self._activity = self._broken_off
            self._say(Decline, token=self._broken_off.token, reason=decline_reason(self._broken_off.error))
        elif self._outbox:
            self._deliver(self._outbox[0])
        elif self._job is not None:
            return
        elif self._sealed_manifest != welcome.manifest:
            self._fetch(Fetching(None, welcome.manifest, welcome.manifest_bytes), keep=None)
        elif self._info is None:
            self._job = Job.PREPARE
            self._effects.append(Prepare(welcome.manifest))
        elif not self._paused:
            self._ask(welcome.manifest, self._info)

    def _ask(self, manifest: str, info: TrainerInfo) -> None:
        q = self._say(
            Ready,
            run=self._run,
            manifest=manifest,
            fingerprint=info.fingerprint,
            quantization=info.quantization,
            rank=info.rank,
            residual=info.residual,
            num_examples=info.num_examples,
        )
        self._activity = Asking(q)

    def _deliver(self, item: Outgoing) -> None:
        token, examples, metrics = item.assignment.token, item.num_examples, item.metrics
        if item.sha256 is None:
            self._activity = Reporting(item)
            self._say(Report, token=token, num_examples=examples, metrics=metrics)
            return
        upload = upload_id(self._run, item.assignment.round, self._public_key, token, item.sha256)
        self._activity = Uploading(item, upload, Sender(len(item.data), self._sizer.bytes))
        self._say(
            Offer,
            upload=upload,
            token=token,
            size=len(item.data),
            sha256=item.sha256,
            num_examples=examples,
            metrics=metrics,
        )

    def _fetch_objects(self, goal: Assignment | Finished, objects: tuple[Handout, ...]) -> None:
        """Fetches what the goal takes, one after the other; all else but the manifest is of no use any more."""
        keep = {each.digest for each in objects}
        if self._link.welcome is not None:
            keep.add(self._link.welcome.manifest)
        self._fetch(Fetching.of(goal, objects), frozenset(keep))

    def _fetch(self, fetch: Fetching, keep: frozenset[str] | None) -> None:
        self._activity = fetch
        self._effects.append(Open(fetch.digest, fetch.size, keep))

    def _later(self, delay_s: float | None = None) -> None:
        """Ends the activity; the next one starts after the delay, or after a back-off that grows with each failure."""
        self._activity = None
        self._act_at = self._now + (backoff_s(self._failures, self._rng) if delay_s is None else delay_s)
        self._failures += delay_s is None

    # -- Messages ------------------------------------------------------------------------------------------------

    def _received(self, frames: Frames) -> None:
        try:
            message = self._link.receive(frames, self._now)
            if message is not None:
                self._message(message)
        except RemoteProtocolError as error:
            self._violated(error)

    def _message(self, message: Message) -> None:
        match message:
            case Welcome():
                self._welcomed(message)
            case Wait() | Task() | Finished():
                if isinstance(self._activity, Asking) and message.q == self._activity.q:
                    self._answered(message)
            case Data():
                self._data(message)
            case Credit():
                self._credit(message)
            case Ack():
                self._acknowledged(message.ref)
            case Nack():
                self._nack(message)
            case Bye():
                self._lost()
            case Pong():
                pass

    def _welcomed(self, welcome: Welcome) -> None:
        if welcome.version != limits.PROTOCOL_VERSION:
            raise RemoteProtocolError(f"version {welcome.version} was not on offer", NackCode.INCOMPATIBLE)
        if welcome.run != self._run:
            self._fail(
                TicketError(
                    f"the ticket is for run {self._run!r}, the aggregator at its address serves {welcome.run!r}"
                )
            )
            return
        self._link.welcome, self._sizer = welcome, ChunkSizer(welcome.chunk_max)
        self._act_at = None
        self._next()

    def _answered(self, message: Wait | Task | Finished) -> None:
        """An answer to ``READY``."""
        self._activity, self._failures = None, 0
        match message:
            case Wait():
                self._violations = 0
                self._later((message.after_ms + self._rng.uniform(0, message.window_ms)) / 1000)
            case Task():
                assignment = Assignment.from_json(bytes(message.payload))
                if assignment.run != self._run:
                    raise RemoteProtocolError(f"an assignment of run {assignment.run!r}")
                self._fetch_objects(assignment, assignment.objects)
            case Finished():
                self._fetch_objects(message, (message.handout,))

    def _acknowledged(self, ref: str) -> None:
        match self._activity:
            case Declining(token=token, error=error) if ref == token:
                self._declined(error)
            case Uploading(item=item, upload=upload) if ref == upload:
                self._delivered(item)
            case Reporting(item=item) if ref == item.assignment.token:
                self._delivered(item)

    def _delivered(self, item: Outgoing) -> None:
        self._failures = self._violations = 0
        self._settle(item, accepted=True)
        self._next()

    def _nack(self, nack: Nack) -> None:
        if nack.code.terminal:
            if nack.code in _ABOUT_RESULTS and isinstance(self._activity, Uploading | Reporting):
                self._settle(self._activity.item, accepted=False, reason=f"{nack.code}: {nack.reason}")
            self._fail(error_of(nack.code, nack.reason))
        elif self._link.welcome is None:
            self._lost(self._retry_s(nack))
        elif nack.ref in self._refs():
            self._rejected(nack)

    def _refs(self) -> tuple[str, ...]:
        """What a ``NACK`` names if it is about the activity in hand; an empty name is about it, too."""
        match self._activity:
            case Uploading(item=item, upload=upload):
                return "", upload, item.assignment.token
            case Reporting(item=item):
                return "", item.assignment.token
            case Declining(token=token):
                return "", token
            case Fetching(digest=digest):
                return "", digest
            case Asking():
                return ("",)
            case None:
                return ()

    def _rejected(self, nack: Nack) -> None:
        reason = f"{nack.code}: {nack.reason}"
        match self._activity:
            case Declining(error=error):
                self._declined(error)
            case _ if nack.code is NackCode.RETRY_LATER:
                self._later(self._retry_s(nack))
            case Uploading(item=item) | Reporting(item=item):
                self._settle(item, accepted=False, reason=reason)
                if nack.code not in _NOT_WANTED:
                    self._later()
                self._next()
            case Asking() if nack.code is NackCode.WRONG_MANIFEST:
                self._lost()
            case Asking():
                self._effects.append(Settled(None, False, reason))
                self._later()
            case Fetching():
                self._later()

    def _retry_s(self, nack: Nack) -> float | None:
        """When the aggregator wants us back, spread out by half; None: our own back-off decides."""
        return nack.retry_after_ms / 1000 * self._rng.uniform(1.0, 1.5) if nack.retry_after_ms else None

    def _settle(self, item: Outgoing, *, accepted: bool, reason: str = "") -> None:
        """A result is durable with the aggregator, or will never be wanted: the outbox is rid of it."""
        self._activity = None
        self._outbox.remove(item)
        self._effects += [Forget(item.assignment.token), Settled(item, accepted, reason)]

    # -- Objects on their way ------------------------------------------------------------------------------------

    def _opened(self, opened: Opened) -> None:
        fetch = self._activity
        if isinstance(fetch, Fetching) and fetch.digest == opened.digest:
            fetch.download = Download(fetch.size, opened.have)
            self._request(fetch, fetch.download)

    def _request(self, fetch: Fetching, download: Download) -> None:
        if download.complete:
            self._effects.append(Seal(fetch.digest))
        for piece in fetch.pieces(self._sizer.bytes):
            self._say(Get, digest=fetch.digest, offset=piece.offset, length=piece.length)

    def _data(self, data: Data) -> None:
        fetch = self._activity
        if isinstance(fetch, Fetching) and fetch.download is not None and fetch.accept(data):
            self._effects.append(Write(data.digest, data.offset, data.payload))
            self._moved(len(data.payload))
            self._request(fetch, fetch.download)

    def _sealed(self, sealed: Sealed) -> None:
        fetch = self._activity
        if not isinstance(fetch, Fetching) or fetch.digest != sealed.digest:
            return
        self._activity = None
        if not sealed.ok:
            self._violated(AggregatorError(f"object {sealed.digest[:16]}… arrived with another content"))
            return
        self._violations = 0
        if fetch.later:
            self._fetch(Fetching.of(fetch.goal, fetch.later), keep=None)
            return
        match fetch.goal:
            case None:
                self._sealed_manifest = sealed.digest
                self._next()
            case Assignment():
                self._job, self._training = Job.TRAIN, fetch.goal
                self._effects.append(Train(fetch.goal))
            case Finished():
                self._job, self._installing = Job.INSTALL, fetch.goal
                self._effects.append(Install(fetch.goal))

    def _credit(self, credit: Credit) -> None:
        upload = self._activity
        if not isinstance(upload, Uploading) or credit.upload != upload.upload:
            return
        if upload.queued:
            self._link.progressed(self._now)
        self._moved(upload.credit(credit))
        for offset, payload in upload.chunks(self._sizer.bytes):
            self._say(Chunk, upload=upload.upload, offset=offset, payload=payload)

    def _moved(self, count: int) -> None:
        """Bytes arrived, here or there: the transfer is alive, and this fast."""
        if count > 0:
            self._sizer.observe(count, self._link.progressed(self._now))
            self._failures = 0

    # -- The job -------------------------------------------------------------------------------------------------

    def _installed(self) -> None:
        finished = self._installing
        if self._job is Job.INSTALL and finished is not None:
            self._job = None
            self._finish(Phase.FINISHED, "the run is over")
            self._effects.append(Complete(finished))

    def _job_failed(self, error: Exception) -> None:
        job, self._job = self._job, None
        tellable = self._link.welcome is not None or isinstance(error, BudgetSpentError)
        if job is Job.TRAIN and self._training is not None and tellable:
            self._broken_off = Declining(self._training.token, error)
            self._next()
        else:
            self._fail(error)

    def _declined(self, error: Exception) -> None:
        """The aggregator knows: the client ends with its error, or, its budget spent, waits for the final adapter."""
        if not isinstance(error, BudgetSpentError):
            self._fail(error)
            return
        self._broken_off = None
        self._effects.append(Settled(None, False, str(error)))
        self._later()

    # -- The end, and the way out --------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        self._finish(Phase.FAILED, type(error).__name__)
        self._effects.append(Fail(error))

    def _finish(self, phase: Phase, goodbye: str) -> None:
        self._link.drop(self._now, goodbye)
        self._activity = self._job = None
        self._end = phase

    def _say(self, kind: type[Message], **fields: Any) -> int:
        return self._link.say(kind, self._now, **fields)

    def _take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
