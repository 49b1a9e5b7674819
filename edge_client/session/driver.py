"""The thin owner of one client's I/O: carries events to the engine and does what the engine asks for.

Everything happens inside :meth:`Driver.poll`, in the thread that calls it. A device calls it in a loop; a simulation
calls it when the virtual clock has reached :attr:`Driver.wake_at` or a frame is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from edge_client.session.activities import Phase
from edge_client.session.engine import Engine
from edge_client.session.events import (
    Complete,
    Connect,
    Disconnect,
    Effect,
    Event,
    Fail,
    Forget,
    Install,
    Open,
    Opened,
    Prepare,
    Seal,
    Sealed,
    Send,
    Settled,
    Tick,
    Train,
    Write,
)
from edge_client.session.jobs import Jobs
from edge_client.session.worker import Worker
from edge_client.storage.home import Home
from edge_client.transport.base import AuthenticationFailed, Disconnected, Transport
from protocol.messages import Finished

__all__ = ["Driver", "Traffic"]

_EVENTS_PER_POLL = 256


@dataclass(frozen=True)
class Traffic:
    """Bytes as counted on the socket, over all connections."""

    sent: int = 0
    received: int = 0


class Driver:
    """Runs one engine.

    Args:
        engine: What decides.
        connect: Opens a new transport; called for every try.
        home: Where objects and outbox are.
        jobs: What the worker is given to do.
        worker: Who does it.
        clock: A monotonic time, seconds; virtual in simulations.
        on_settled: Told about every result that the aggregator took or refused.

    Attributes:
        finished: The final adapter's description, once the run is over.
        error: Why the client cannot go on, if so.
        assignment: What was given out last.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        connect: Callable[[], Transport],
        home: Home,
        jobs: Jobs,
        worker: Worker,
        clock: Callable[[], float],
        on_settled: Callable[[Settled], None] = lambda settled: None,
    ) -> None:
        self._engine, self._connect, self._home, self._jobs, self._worker = engine, connect, home, jobs, worker
        self._clock, self._on_settled = clock, on_settled
        self._transport: Transport | None = None
        self._past = Traffic()
        self._started = False
        self.finished: Finished | None = None
        self.error: Exception | None = None
        self.round: int | None = None

    @property
    def phase(self) -> Phase:
        """Where the client is."""
        return self._engine.phase

    @property
    def connected(self) -> bool:
        """Whether there is a transport to wait on."""
        return self._transport is not None

    @property
    def traffic(self) -> Traffic:
        """Bytes sent and received so far."""
        now = self._transport
        if now is None:
            return self._past
        return Traffic(self._past.sent + now.bytes_sent, self._past.received + now.bytes_received)

    @property
    def wake_at(self) -> float | None:
        """When :meth:`poll` has something to do even if nothing arrives; None once it is over."""
        return self._engine.wake_at if self._started else self._clock()

    def feed(self, event: Event) -> None:
        """Tells the engine something, such as :class:`.events.Stop`, and does what follows from it."""
        pending: deque[Event] = deque([event])
        while pending:
            now = self._clock()
            for effect in self._engine.feed(pending.popleft(), now):
                pending += self._do(effect)

    def poll(self, wait_s: float = 0.0) -> None:
        """Does everything that can be done now, after waiting at most ``wait_s`` seconds for a first frame."""
        if not self._started:
            self._started = True
            for effect in self._engine.start(self._clock()):
                self._do(effect)
        for _ in range(_EVENTS_PER_POLL):
            event = None if self._transport is None else self._transport.recv(wait_s)
            wait_s = 0.0
            if event is None:
                break
            if isinstance(event, Disconnected | AuthenticationFailed):
                self._hang_up()
            self.feed(event)
        result = self._worker.take()
        if result is not None:
            self.feed(result)
        due = self._engine.wake_at
        if due is not None and due <= self._clock():
            self.feed(Tick())

    def close(self) -> None:
        """Lets go of the transport and waits for the worker."""
        self._hang_up()
        self._worker.close()

    def _do(self, effect: Effect) -> list[Event]:
        match effect:
            case Send(frames=frames) if self._transport is not None:
                self._transport.send(frames)
            case Connect():
                self._hang_up()
                self._transport = self._connect()
            case Disconnect():
                self._hang_up()
            case Open(digest=digest, size=size, keep=keep):
                return [Opened(digest, self._home.objects.open(digest, size, keep))]
            case Write(digest=digest, offset=offset, payload=payload):
                self._home.objects.write(digest, offset, payload)
            case Seal(digest=digest):
                return [Sealed(digest, self._home.objects.seal(digest))]
            case Prepare() | Train() | Install():
                if isinstance(effect, Train):
                    self.round = effect.assignment.round
                self._worker.start(self._jobs.of(effect))
            case Forget(token=token):
                self._home.outbox.remove(token)
            case Settled():
                self._on_settled(effect)
            case Complete(finished=finished):
                self.finished = finished
            case Fail(error=error):
                self.error = error
        return []

    def _hang_up(self) -> None:
        if self._transport is not None:
            self._past = self.traffic
            self._transport.close()
            self._transport = None
