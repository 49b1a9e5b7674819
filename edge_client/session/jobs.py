"""What the worker does for the engine: calls the trainer with decoded tensors, and stores what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import accumulate

from edge_client.errors import AggregatorError, EdgeClientError
from edge_client.privacy import Accountant
from edge_client.session.events import Failed, Install, Installed, Prepare, Prepared, Train, Trained
from edge_client.session.worker import JobResult
from edge_client.storage.home import Home
from edge_client.trainer import LocalResult, Progress, Trainer, TrainerInfo
from protocol import limits
from protocol.assignment import Assignment, AssignmentKind, Handout
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors, Layout

__all__ = ["Jobs"]

_METRIC_NAME_MAX = 64
_METRICS_MAX_BYTES, _NUMBER_BYTES = 3500, 11
"""What metrics may take of a header, and what one takes beside its name."""


class Jobs:
    """The three jobs of a run, as functions that never raise.

    Args:
        home: Where objects and outbox are.
        trainer: What trains.
        cancelled: Asked between two optimizer steps.
        progress: Told after each optimizer step.
        epsilon_max: This device's own privacy budget; None: the run decides alone.

    Attributes:
        accountant: Knows what private training has cost so far.
    """

    def __init__(
        self,
        home: Home,
        trainer: Trainer,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
        epsilon_max: float | None = None,
    ) -> None:
        self._home, self._trainer = home, trainer
        self._cancelled, self._progress = cancelled, progress
        self.accountant = Accountant(home.ledger, epsilon_max)
        self._manifest: Manifest | None = None
        self._info: TrainerInfo | None = None

    def of(self, effect: Prepare | Train | Install) -> Callable[[], JobResult]:
        """The job that an effect of the engine asks for."""

        def job() -> JobResult:
            try:
                return self._do(effect)
            except RemoteProtocolError as error:
                return Failed(AggregatorError(f"the aggregator sent something unusable: {error}"))
            except Exception as error:  # whatever a trainer raises is the app's to see, not the thread's to lose
                return Failed(error)

        return job

    def _do(self, effect: Prepare | Train | Install) -> JobResult:
        match effect:
            case Prepare(manifest=digest):
                self._manifest = Manifest.from_json(self._home.objects.read(digest))
                self._info = self._trainer.info(self._manifest)
                return Prepared(self._info)
            case Train(assignment=assignment):
                return self._train(*self._prepared(), assignment)
            case Install(finished=finished):
                manifest, _ = self._prepared()
                adapter = self._handout(manifest, finished.handout)
                self._trainer.install(adapter, finished.rank)
                return Installed()

    def _train(self, manifest: Manifest, info: TrainerInfo, assignment: Assignment) -> Trained:
        charge = self.accountant.admit(assignment, info.num_examples, capable=info.private)
        handout = assignment.decode_handout(manifest, self._home.objects.read)
        result = self._trainer.run(assignment, handout, cancelled=self._cancelled, progress=self._progress)
        update, metrics = _encoded(manifest, assignment, result), result.metrics
        if charge is not None:
            # Nothing of the round left the device yet. What is killed before this costs nothing; what is killed after
            # it has been paid for. The trainer's own metrics have no noise, and stay here.
            spent = self.accountant.charge(charge, assignment.local.delta)
            metrics = {"epsilon": spent.epsilon, "delta": spent.delta}
        tidy = LocalResult(update=None, num_examples=result.num_examples, metrics=_tidy(metrics))
        return Trained(self._home.outbox.put(assignment, tidy, update))

    def _handout(self, manifest: Manifest, handout: Handout) -> AdapterTensors:
        data = self._home.objects.read(handout.digest)
        return Layout.of(manifest).decode(data, handout.slots, handout.codec)

    def _prepared(self) -> tuple[Manifest, TrainerInfo]:
        if self._manifest is None or self._info is None:
            raise EdgeClientError("a job came before the manifest: a bug in the engine")
        return self._manifest, self._info


def _encoded(manifest: Manifest, assignment: Assignment, result: LocalResult) -> bytes | None:
    if assignment.kind is not AssignmentKind.TRAIN:
        return None
    if result.update is None:
        raise EdgeClientError(f"the trainer returned no update for round {assignment.round}: a bug in the trainer")
    try:
        return assignment.update_layout(manifest).encode(result.update, assignment.update_codec)
    except LocalProtocolError as error:
        raise EdgeClientError(
            f"the update of round {assignment.round} cannot be sent: {error}; if it is not finite, training diverged: "
            "a lower learning rate, or fp32 instead of fp16, may help"
        ) from error


def _tidy(metrics: Mapping[str, float]) -> dict[str, float]:
    """What fits into one message: short-named, finite metrics, the first ones that there is room for."""
    usable = {name: float(value) for name, value in metrics.items() if len(name) <= _METRIC_NAME_MAX}
    finite = [(name, value) for name, value in usable.items() if math.isfinite(value)]
    sizes = accumulate(len(name.encode()) + _NUMBER_BYTES for name, _ in finite)
    fitting = [metric for metric, size in zip(finite, sizes, strict=True) if size <= _METRICS_MAX_BYTES]
    return dict(fitting[: limits.METRICS_MAX])
