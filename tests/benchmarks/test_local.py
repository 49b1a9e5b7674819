import numpy as np
import pytest

from benchmarks.local import fresh_adapter, local_assignment, train_locally
from benchmarks.simulation.manifests import toy_manifest
from edge_client.trainer import LocalResult
from edge_client.trainers.numpy_trainer import NumpyTrainer
from protocol.assignment import Assignment, AssignmentKind, LocalTraining
from protocol.payload import AdapterTensors, Layout

MANIFEST = toy_manifest(rank_max=4)


def trainer(rate: float = 0.5) -> NumpyTrainer:
    made = NumpyTrainer(seed=1, rank=4, rate=rate)
    made.info(MANIFEST)
    return made


def loss(adapter) -> float:  # type: ignore[no-untyped-def]
    assignment = local_assignment(AssignmentKind.EVALUATE, rank=4)
    result = trainer().run(assignment, adapter, cancelled=lambda: False, progress=lambda progress: None)
    return result.metrics["loss"]


def test_fresh_adapter_changes_nothing_but_can_be_trained() -> None:
    adapter = fresh_adapter(MANIFEST, 4, seed=0)
    layout = Layout.of(MANIFEST)
    for module in MANIFEST.low_rank:
        b, a = layout.factors(adapter.slots, module.name)
        assert not b.any()
        assert np.linalg.norm(a, axis=1).min() > 0


def test_each_round_goes_on_from_the_one_before() -> None:
    start, local = fresh_adapter(MANIFEST, 4, seed=0), LocalTraining()
    losses = [loss(train_locally(trainer(), start, rounds=n, local=local, seed=0)) for n in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < 0.5 * losses[1]


def test_a_trainer_that_does_nothing_leaves_the_adapter_as_it_was() -> None:
    start = fresh_adapter(MANIFEST, 4, seed=0)
    ended = train_locally(trainer(rate=0.0), start, rounds=3, local=LocalTraining(), seed=0)
    np.testing.assert_array_equal(ended.slots, start.slots)


@pytest.mark.parametrize("rank", [1, 16])
def test_a_run_without_low_rank_modules_goes_on_at_its_rank(rank: int) -> None:
    class Dense:
        def info(self, manifest):  # type: ignore[no-untyped-def]
            raise NotImplementedError

        def run(self, assignment, handout, **calls):  # type: ignore[no-untyped-def]
            change = AdapterTensors({"h": np.ones(3, np.float32)}, np.zeros((0, 0), np.float32))
            return LocalResult(update=change, num_examples=1, metrics={"rank": float(assignment.rank)})

    start = AdapterTensors({"h": np.zeros(3, np.float32)}, np.zeros((rank, 0), np.float32))
    ended = train_locally(Dense(), start, rounds=3, local=LocalTraining(), seed=0)
    assert ended.rank == rank
    np.testing.assert_array_equal(ended.dense["h"], np.full(3, 3.0))


def test_rounds_have_different_seeds_and_are_told() -> None:
    seen: list[Assignment] = []
    told: list[int] = []

    class Spy(NumpyTrainer):
        def run(self, assignment, handout, **calls):  # type: ignore[no-untyped-def]
            seen.append(assignment)
            return super().run(assignment, handout, **calls)

    spy = Spy(seed=1, rank=4)
    spy.info(MANIFEST)
    start = fresh_adapter(MANIFEST, 4, seed=0)
    train_locally(spy, start, rounds=3, local=LocalTraining(max_steps=1), seed=5, after_round=told.append)
    assert told == [given.round for given in seen] == [1, 2, 3]
    assert len({given.seed for given in seen}) == 3
    assert all(given.local.max_steps == 1 for given in seen)


def test_an_assignment_that_nobody_gave_can_be_written_and_read() -> None:
    assignment = local_assignment(AssignmentKind.TRAIN, rank=4, round_number=2, seed=9)
    assert Assignment.from_json(assignment.to_json()) == assignment
