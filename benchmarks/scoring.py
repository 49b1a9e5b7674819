"""Scores global states on rows of the benchmark's own, as the devices of a rank would hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aggregator.merge import GlobalState, make_handout
from benchmarks.local import local_assignment
from edge_client.trainers.resident_base import SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import AssignmentKind
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors

__all__ = ["Scorer"]


class Scorer:
    """Loss and metrics of adapters, on the same rows each time.

    Args:
        base: The base model, shared with the devices of a simulation.
        manifest: The run.
        rows: What to score on.
    """

    def __init__(self, base: SharedBase, manifest: Manifest, rows: Sequence[Mapping[str, object]]) -> None:
        self._base, self._manifest, self._rows = base, manifest, rows
        self._trainers: dict[int, TorchTrainer] = {}

    def score(self, offset: GlobalState, rank: int) -> Mapping[str, float]:
        """Scores the best adapter of a rank, to five decimals."""
        return self.score_adapter(make_handout(offset, self._manifest, rank, seed=0), rank)

    def score_adapter(self, adapter: AdapterTensors, rank: int) -> Mapping[str, float]:
        """Scores an adapter of a rank as it is."""
        trainer = self._trainers.get(rank)
        if trainer is None:
            trainer = self._trainers[rank] = TorchTrainer.sharing(self._base, eval_data=self._rows, rank=rank)
        trainer.info(self._manifest)
        assignment = local_assignment(AssignmentKind.EVALUATE, rank=rank)
        result = trainer.run(assignment, adapter, cancelled=lambda: False, progress=lambda progress: None)
        return {name: round(value, 5) for name, value in result.metrics.items()}
