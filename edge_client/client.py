"""EdgeClient: one device's part in one run, as an app embeds it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import zmq

from edge_client.config import ClientConfig, LocalModel
from edge_client.enrolment import TryAgain, redeem
from edge_client.errors import EdgeClientError, TicketError
from edge_client.privacy import Accountant, Spent
from edge_client.progress_bar import ProgressBar
from edge_client.session.activities import Phase
from edge_client.session.driver import Driver
from edge_client.session.engine import Engine
from edge_client.session.events import Pause, Resume, Settled, Stop
from edge_client.session.jobs import Jobs
from edge_client.session.pacing import backoff_s
from edge_client.session.worker import ThreadWorker
from edge_client.status import RoundResult, RunSummary, Status
from edge_client.storage.home import Home
from edge_client.storage.keys import KeyPair
from edge_client.trainer import Progress, Trainer
from edge_client.trainers.lazy_trainer import LazyTrainer, torch_trainer
from edge_client.transport.zmq_transport import ZmqNetwork, ZmqTransport
from protocol.ticket import Ticket

if TYPE_CHECKING:
    import os
    from pathlib import Path

__all__ = ["EdgeClient"]

_TICK_S = 0.05
"""Longest nap of the loop: how soon a finished training, a pause or a stop is noticed."""
_RETRIES_AFTER_ENROLMENT = 5


class EdgeClient:
    """One device's part in one run: joins, trains what it is assigned, delivers, and holds the adapter at the end.

    What it has trained but not yet delivered survives a crash: make a client with the same ticket, or the same
    ``state_dir``, and it goes on.

    What is tuned is the run's to say, not the device's: ``full``, ``head``, ``bitfit``, ``lora``, ``adapter``,
    ``prefix``, ``prompt`` or ``vpt`` (``edge_client/methods/README.md`` tells which goes with which model). The device
    says at which rank, or adapter width, and how it holds the base.

    Args:
        ticket: The operator's ticket, or the path of its file.
        model: Base model of the built-in trainer: hub id or folder.
        data: Its training data: a ``datasets.Dataset``, a list of dicts, a JSONL or CSV path, a torch ``Dataset``.
        eval_data: Its evaluation data; None: the trainer decides.
        rank: LoRA rank, or adapter width, of this device; None: the run's default.
        lora_alpha: PEFT's ``lora_alpha``; None: the trainer's default.
        use_rslora: Scaling ``α/√r`` instead of ``α/r``.
        quantization: How to hold the base: ``nf4``, ``int8``, ``bf16`` or ``fp32``.
        residual: Whether to take the part of the global adapter above ``rank`` as a frozen adapter.
        micro_batch_size: Examples in one forward pass; None: the whole batch.
        device: torch device; None: CUDA if there is one.
        epsilon_max: This device's privacy budget over all rounds of the run. It then trains with noise (DP-SGD) or not
            at all. None: the run decides alone.
        state_dir: Folder for the key, the outbox and what was fetched (``edge_client.storage.home``). None:
            ``$XDG_DATA_HOME/tributary/…`` or ``~/.local/share/tributary/…``, one folder per run and ticket.
        key: Key file made by ``tributary-client keygen``, where devices are enrolled by hand; None: the device's own.
        name: What the operator's ``status`` calls this device; None: the host name.
        trainer: Trains instead of the built-in trainer; ``model``, ``data`` and what belongs to them are not looked
            at then.
        on_progress: Called after every optimizer step, in the thread that trains.
        on_round: Called with each result that the aggregator took or refused, in the thread that talks.
        progress_bar: Whether to show a bar on stderr.

    Raises:
        ConfigError: Arguments are wrong; all of them are named.
        TicketError: The ticket cannot be read.
    """

    def __init__(
        self,
        ticket: str | os.PathLike[str] | Ticket,
        model: str | Path | None = None,
        data: object = None,
        *,
        eval_data: object = None,
        rank: int | None = None,
        lora_alpha: float | None = None,
        use_rslora: bool = False,
        quantization: str = "nf4",
        residual: bool = False,
        micro_batch_size: int | None = None,
        device: str | None = None,
        epsilon_max: float | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        name: str | None = None,
        trainer: Trainer | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_round: Callable[[RoundResult], None] | None = None,
        progress_bar: bool = False,
    ) -> None:
        local = LocalModel(
            model=model,
            data=data,
            eval_data=eval_data,
            quantization=quantization,
            rank=rank,
            lora_alpha=lora_alpha,
            use_rslora=use_rslora,
            residual=residual,
            micro_batch_size=micro_batch_size,
            device=device,
        )
        self._config = ClientConfig.build(
            ticket=ticket,
            trainer=trainer or local,
            state_dir=state_dir,
            key=key,
            name=name,
            epsilon_max=epsilon_max,
        )
        self._trainer = trainer or LazyTrainer(lambda: torch_trainer(local))
        self._on_progress, self._on_round = on_progress, on_round
        self._bar = ProgressBar() if progress_bar else None
        self._status = Status(run=self._config.ticket.run)  # written by the thread that talks alone
        self._progress: Progress | None = None  # written by the thread that trains alone
        self._going, self._stopping = threading.Event(), threading.Event()
        self._going.set()
        self._busy = threading.Lock()
        self._thread: threading.Thread | None = None
        self._outcome: RunSummary | BaseException | None = None

    # -- The app's side ------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """Where the client is; may be read from any thread."""
        status, progress = self._status, self._progress
        if progress is None or progress.round != status.round:
            return status
        return replace(status, step=progress.step, steps=progress.steps, loss=progress.loss)

    @property
    def state_dir(self) -> Path:
        """The folder that holds the device's key and whatever is not delivered yet."""
        return self._config.state_dir

    @property
    def model(self) -> Any:
        """The trainer's resident model, with the final adapter once the run is over.

        Raises:
            EdgeClientError: There is none: nothing was trained yet, or the trainer has no attribute ``model``.
        """
        made = self._trainer.made if isinstance(self._trainer, LazyTrainer) else self._trainer
        model = getattr(made, "model", None)
        if model is None:
            raise EdgeClientError(
                "there is no model yet: it is loaded when a run starts (and a custom trainer has one)"
            )
        return model

    def run(self) -> RunSummary:
        """Takes part until the run is over, or :meth:`stop` is called from another thread.

        Returns:
            What came of it.

        Raises:
            EdgeClientError: This device cannot take part (see :mod:`edge_client.errors`), or is running already.
            Exception: Whatever else the trainer raised.
        """
        if not self._busy.acquire(blocking=False):
            raise EdgeClientError("this client is running already: wait for it, or stop it")
        try:
            self._stopping.clear()
            return self._run()
        except EdgeClientError as error:
            self._status = replace(self._status, state=Phase.FAILED, last_error=str(error))
            raise
        finally:
            self._busy.release()

    def start(self) -> None:
        """Runs in a thread of its own; :meth:`wait` gives what came of it."""

        def target() -> None:
            try:
                self._outcome = self.run()
            except BaseException as error:  # carried to the thread that waits
                self._outcome = error

        if self._thread is not None and self._thread.is_alive():
            raise EdgeClientError("this client is running already: wait for it, or stop it")
        self._outcome = None
        self._thread = threading.Thread(target=target, name="tributary-client", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> RunSummary | None:
        """Waits for what :meth:`start` began.

        Returns:
            What came of it; None if it is not over after ``timeout_s`` seconds, or was never started.

        Raises:
            EdgeClientError: As :meth:`run`.
        """
        if self._thread is not None:
            self._thread.join(timeout_s)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def pause(self) -> None:
        """Halts training at the next step, and asks for no new work; what is trained is still delivered."""
        self._going.clear()

    def resume(self) -> None:
        """Goes on after :meth:`pause`."""
        self._going.set()

    def stop(self) -> None:
        """Ends soon: training stops at the next step, and what is not delivered waits for the next start."""
        self._stopping.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()

    # -- The thread that talks -----------------------------------------------------------------------------------

    def _run(self) -> RunSummary:
        ticket, rng = self._config.ticket, random.Random()
        with self._open_network() as network, Home(self._config.state_dir) as home:
            enrolled = home.bind(ticket)
            key = home.key(self._config.key_file)
            self._status = replace(self._status, device=key.client_id)
            fresh = not enrolled and ticket.token is not None
            if fresh and not self._enrol(network, home, key, rng):
                return self._summary(None)
            engine = Engine(
                run=ticket.run,
                public_key=key.public,
                sdk=_sdk(),
                rng=rng,
                outbox=home.outbox.entries(),
                authentication_retries=_RETRIES_AFTER_ENROLMENT * fresh,
            )
            jobs = Jobs(
                home,
                self._trainer,
                cancelled=self._cancelled,
                progress=self._progressed,
                epsilon_max=self._config.epsilon_max,
            )
            driver = Driver(
                engine=engine,
                connect=lambda: _dial(network, ticket.endpoint, ticket, key),
                home=home,
                jobs=jobs,
                worker=ThreadWorker(),
                clock=time.monotonic,
                on_settled=self._settled,
            )
            try:
                self._drive(driver, jobs.accountant)
            except OSError as error:
                raise EdgeClientError(
                    f"state_dir: cannot write to {home.folder}: {error}; mend it, then go on"
                ) from error
            finally:
                self._stopping.set()
                driver.close()
                if self._bar is not None:
                    self._bar.close()
            if driver.error is not None:
                raise driver.error
            return self._summary(driver)

    def _open_network(self) -> ZmqNetwork:
        """What carries the frames; fault runs put one in its place that keeps a record."""
        return ZmqNetwork()

    def _enrol(self, network: ZmqNetwork, home: Home, key: KeyPair, rng: random.Random) -> bool:
        """Redeems the ticket, however long the aggregator is away; False if the app stopped us first."""
        ticket, attempt = self._config.ticket, 0
        while not self._stopping.is_set():
            transport = _dial(network, ticket.enrolment_endpoint, ticket, key)
            try:
                redeem(ticket, self._config.name, transport, time.monotonic)
                home.enrolled(ticket)
                return True
            except TryAgain as delay:
                self._status = replace(self._status, last_error=str(delay))
                self._stopping.wait(backoff_s(attempt, rng) if delay.after_s is None else delay.after_s)
                attempt += 1
            finally:
                transport.close()
        return False

    def _drive(self, driver: Driver, accountant: Accountant) -> None:
        paused = False
        while not driver.phase.over:
            if self._stopping.is_set():
                driver.feed(Stop())
            if paused is self._going.is_set():
                paused = not paused
                driver.feed(Pause() if paused else Resume())
            due = driver.wake_at
            nap = _TICK_S if due is None else min(_TICK_S, max(0.0, due - time.monotonic()))
            if not driver.connected:
                self._stopping.wait(nap)
            driver.poll(nap)
            self._publish(driver, accountant.spent)

    def _publish(self, driver: Driver, spent: Spent | None) -> None:
        traffic = driver.traffic
        self._status = replace(
            self._status,
            state=driver.phase,
            round=driver.round,
            bytes_sent=traffic.sent,
            bytes_received=traffic.received,
            epsilon=None if spent is None else spent.epsilon,
            delta=None if spent is None else spent.delta,
            last_error=self._status.last_error if driver.error is None else str(driver.error),
        )

    def _settled(self, settled: Settled) -> None:
        reason = self._status.last_error if settled.accepted else settled.reason
        self._status = replace(self._status, accepted=self._status.accepted + settled.accepted, last_error=reason)
        if settled.item is not None and self._on_round is not None:
            item = settled.item
            self._on_round(
                RoundResult(
                    round=item.assignment.round,
                    accepted=settled.accepted,
                    reason=settled.reason,
                    num_examples=item.num_examples,
                    metrics=item.metrics,
                )
            )

    def _summary(self, driver: Driver | None) -> RunSummary:
        finished = None if driver is None else driver.finished
        status = self._status
        return RunSummary(
            run=status.run,
            finished=finished is not None,
            version=None if finished is None else finished.version,
            rank=None if finished is None else finished.rank,
            accepted=status.accepted,
            bytes_sent=status.bytes_sent,
            bytes_received=status.bytes_received,
            epsilon=status.epsilon,
            delta=status.delta,
        )

    # -- The thread that trains ----------------------------------------------------------------------------------

    def _cancelled(self) -> bool:
        """Holds training while the client is paused; True once it shall end."""
        while not self._going.wait(_TICK_S) and not self._stopping.is_set():
            pass
        return self._stopping.is_set()

    def _progressed(self, progress: Progress) -> None:
        self._progress = progress
        if self._bar is not None:
            self._bar(progress)
        if self._on_progress is not None:
            self._on_progress(progress)


def _dial(network: ZmqNetwork, endpoint: str, ticket: Ticket, key: KeyPair) -> ZmqTransport:
    try:
        return network.connect(endpoint, ticket.server_key, key)
    except zmq.ZMQError as error:
        raise TicketError(f"the ticket's address {endpoint!r} cannot be dialled: {error.strerror}") from error


def _sdk() -> str:
    """What the operator sees of this software; a source tree that is not installed has no version."""
    try:
        return f"tributary-fl {metadata.version('tributary-fl')}"
    except metadata.PackageNotFoundError:
        return "tributary-fl"
