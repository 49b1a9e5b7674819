"""What the worker does for the engine: calls the trainer with decoded tensors, and stores what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from edge_client.errors import AggregatorError, EdgeClientError
from edge_client.session.events import Failed, Install, Installed, Prepare, Prepared, Train, Trained
from edge_client.session.worker import JobResult
from edge_client.storage.home import Home
from edge_client.trainer import LocalResult, Progress, Trainer
from protocol import limits
from protocol.assignment import Assignment, AssignmentKind, Handout
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors, Layout

__all__ = ["Jobs"]

_METRIC_NAME_MAX = 64


class Jobs:
    """The three jobs of a run, as functions that never raise.

    Args:
        home: Where objects and outbox are.
        trainer: What trains.
        cancelled: Asked between two optimizer steps.
        progress: Told after each optimizer step.
    """

    def __init__(
        self,
        home: Home,
        trainer: Trainer,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> None:
        self._home, self._trainer = home, trainer
        self._cancelled, self._progress = cancelled, progress
        self._manifest: Manifest | None = None

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
                return Prepared(self._trainer.info(self._manifest))
            case Train(assignment=assignment):
                return self._train(self._known_manifest(), assignment)
            case Install(finished=finished):
                adapter = self._handout(self._known_manifest(), finished.handout)
                self._trainer.install(adapter, finished.rank)
                return Installed()

    def _train(self, manifest: Manifest, assignment: Assignment) -> Trained:
        handout = self._handout(manifest, assignment.handout)
        result = self._trainer.run(assignment, handout, cancelled=self._cancelled, progress=self._progress)
        update = _encoded(manifest, assignment, result)
        tidy = LocalResult(update=None, num_examples=result.num_examples, metrics=_tidy(result.metrics))
        return Trained(self._home.outbox.put(assignment, tidy, update))

    def _handout(self, manifest: Manifest, handout: Handout) -> AdapterTensors:
        data = self._home.objects.read(handout.digest)
        return Layout.of(manifest).decode(data, handout.slots, handout.codec)

    def _known_manifest(self) -> Manifest:
        if self._manifest is None:
            raise EdgeClientError("a job came before the manifest: a bug in the engine")
        return self._manifest


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
    """What fits into one message: few, short-named, finite metrics."""
    usable = {name: float(value) for name, value in metrics.items() if len(name) <= _METRIC_NAME_MAX}
    finite = [(name, value) for name, value in usable.items() if math.isfinite(value)]
    return dict(finite[: limits.METRICS_MAX])
