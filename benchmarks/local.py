"""Training without a network, for the baselines: the device's own trainer, the same steps, nobody else."""

from __future__ import annotations

from collections.abc import Callable

from aggregator.merge import GlobalState, make_handout
from edge_client.trainer import Trainer
from protocol.assignment import Assignment, AssignmentKind, Handout, LocalTraining
from protocol.codecs import Codec
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors

__all__ = ["fresh_adapter", "local_assignment", "train_locally"]


def fresh_adapter(manifest: Manifest, rank: int, seed: int) -> AdapterTensors:
    """The adapter of version 0, which changes nothing yet: what every device of a run starts from."""
    return make_handout(GlobalState.zeros(manifest), manifest, rank, seed)


def local_assignment(
    kind: AssignmentKind, *, rank: int, round_number: int = 1, local: LocalTraining | None = None, seed: int = 0
) -> Assignment:
    """An assignment that no aggregator gave."""
    return Assignment(
        kind=kind,
        run="local",
        round=round_number,
        version=round_number - 1,
        token="0" * 32,
        rank=rank,
        handout=Handout(digest="0" * 64, object_bytes=0, codec=Codec.FP32, slots=rank),
        local=local or LocalTraining(),
        seed=seed,
    )


def train_locally(
    trainer: Trainer,
    start: AdapterTensors,
    *,
    rounds: int,
    local: LocalTraining,
    seed: int,
    after_round: Callable[[int], None] = lambda number: None,
) -> AdapterTensors:
    """Trains round after round, each going on from the one before.

    Args:
        trainer: Told about the run already, with :meth:`~edge_client.trainer.Trainer.info`.
        start: Where to begin; its rank is trained.
        rounds: How often; every round has its own warm-up and moments, as in a federation.
        local: How.
        seed: Decides the order of the data.
        after_round: Told each round's number when it is done.
    """
    adapter = start
    for number in range(1, rounds + 1):
        assignment = local_assignment(
            AssignmentKind.TRAIN, rank=adapter.rank, round_number=number, local=local, seed=seed * rounds + number
        )
        result = trainer.run(assignment, adapter, cancelled=lambda: False, progress=lambda progress: None)
        if result.update is not None:
            adapter = _plus(adapter, result.update)
        after_round(number)
    return adapter


def _plus(adapter: AdapterTensors, change: AdapterTensors) -> AdapterTensors:
    dense = {name: value + change.dense[name] for name, value in adapter.dense.items()}
    slots = adapter.slots + change.slots if change.slots.size else adapter.slots  # no low-rank module, no change of one
    return AdapterTensors(dense, slots)
