"""FedPepTAO whole, on a tiny model: prefixes, a round of probes, partial prompts, controlled momentum."""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from aggregator.config import RunConfig
from aggregator.optimizers import OptimizerName
from aggregator.rounds.layers import selected_layers
from benchmarks.simulation import SimulatedRun
from benchmarks.simulation.manifests import toy_manifest
from edge_client.methods.prefix import Prefix
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.numpy_trainer import NumpyTrainer
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import Assignment, LocalTraining
from protocol.codecs import Codec
from protocol.manifest import DenseTensor, LowRankModule, Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

TASK = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.MEAN, max_length=16)
LENGTH = 4


@pytest.fixture(scope="module")
def finished(tiny_bert, tmp_path_factory):
    """Three devices: a round of training, one of probes, two of training."""
    manifest = write_manifest(tiny_bert, TASK, method=Prefix(length=LENGTH), rank_max=1)
    base = SharedBase(BaseSettings(model=tiny_bert, quantization=Quantization.FP32, device="cpu"))
    words = ("good", "bad", "film")
    data = [
        [{"sentence": f"{words[(n + i) % 3]} w{i + 10 * n} film", "label": i % 2} for i in range(6 + 2 * n)]
        for n in range(3)
    ]
    config = RunConfig(
        run="test",
        rounds=4,
        cohort_size=3,
        default_rank=1,
        handout_codec=Codec.FP32,
        update_codec=Codec.FP32,
        keep_versions=None,
        server_optimizer=OptimizerName.CONTROLLED_MOMENTUM,
        server_population=3,
        probe_round=2,
        kept_layers=0.5,
        local=LocalTraining(learning_rate=0.01, batch_size=4),
    )
    trainers = [TorchTrainer.sharing(base, rows) for rows in data]
    with SimulatedRun(tmp_path_factory.mktemp("run"), config, manifest, trainers) as run:
        run.until_finished()
        yield run, manifest


def test_the_devices_select_layers_and_train_and_send_those_alone(finished):
    run, manifest = finished
    selection = selected_layers(run.journal, 2)
    assert manifest.layers == (0, 1)
    assert len(selection.scores) == 2
    assert len(selection.layers) == 1
    sizes = [{row.size for row in run.journal.uploads(number)} for number in (1, 2, 3, 4)]
    whole = Layout.of(manifest).object_bytes(1, Codec.FP32)
    part = Layout.of(manifest, selection.active(manifest.names)).object_bytes(1, Codec.FP32)
    assert part < 0.6 * whole
    assert sizes == [{whole}, set(), {part}, {part}]


def test_what_is_not_selected_is_handed_out_once_more_and_never_again(finished):
    run, manifest = finished
    given = [[Assignment.from_json(row.document) for row in run.journal.assignments(number)] for number in (2, 3, 4)]
    assert {assignment.inactive for assignment in given[0]} == {None}
    rest = {assignment.inactive.digest for assignment in (*given[1], *given[2])}
    assert len(rest) == 1
    part = Layout.of(manifest, selected_layers(run.journal, 2).active(manifest.names)).object_bytes(1, Codec.FP32)
    assert {assignment.handout.object_bytes for assignment in (*given[1], *given[2])} == {part}


def test_what_is_not_selected_rests_from_then_on(finished):
    run, manifest = finished
    offsets = [run.committed(version).offset.dense for version in range(5)]
    active = selected_layers(run.journal, 2).active(manifest.names)
    for name in manifest.names:
        changed = [not np.array_equal(before[name], after[name]) for before, after in pairwise(offsets)]
        assert changed == [True, False, name in active, name in active], name


DEEP = replace(
    toy_manifest(rank_max=1),
    low_rank=(),
    dense=tuple(DenseTensor(name=name, shape=(4, 3)) for name in ("head", *(f"prefix.{layer}" for layer in range(4)))),
)


@pytest.fixture
def start(tmp_path):
    """Starts runs of four devices; the second round is one of probes."""
    memory = Path("/dev/shm")
    config = RunConfig(
        run="test",
        rounds=5,
        cohort_size=4,
        default_rank=1,
        server_optimizer=OptimizerName.CONTROLLED_MOMENTUM,
        server_population=4,
        probe_round=2,
    )
    with ExitStack() as stack:

        def started():
            root = memory if memory.is_dir() else tmp_path
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root)))
            devices = [NumpyTrainer(seed=n + 1, num_examples=10 * (n + 1)) for n in range(4)]
            return stack.enter_context(SimulatedRun(folder, config, DEEP, devices))

        yield started


def test_broken_off_and_restarted_at_any_step_it_selects_the_same_and_ends_in_the_same_bytes(start):
    whole = start()
    whole.until_finished()
    selection = selected_layers(whole.journal, 2)
    assert 0 < len(selection.layers) < 4
    rounds = set()
    for steps in range(5, 50, 9):
        broken = start()
        for _ in range(steps):
            broken.step()
        rounds.add(broken.federation.round.number)
        broken.stop_aggregator()
        broken.start_aggregator()
        broken.until_finished()
        assert selected_layers(broken.journal, 2) == selection
        assert broken.federation.version == whole.federation.version
    assert {1, 2, 3} <= rounds


@pytest.mark.parametrize("optimizer", [OptimizerName.SGD, OptimizerName.MOMENTUM])
def test_low_rank_modules_that_are_not_selected_rest_whatever_the_server_remembers_of_them(optimizer, tmp_path):
    modules = tuple(LowRankModule(name=f"layer.{layer}.q", out_features=6, in_features=5) for layer in range(4))
    manifest = replace(toy_manifest(rank_max=4), low_rank=modules, dense=())
    config = RunConfig(
        run="test",
        rounds=4,
        cohort_size=3,
        default_rank=2,
        server_optimizer=optimizer,
        probe_round=2,
        kept_layers=0.5,
        keep_versions=None,
    )
    devices = [NumpyTrainer(seed=n + 1, rank=2 + n % 2) for n in range(3)]
    with SimulatedRun(tmp_path, config, manifest, devices) as run:
        run.until_finished(steps_max=10_000)
        active = selected_layers(run.journal, 2).active(manifest.names)
        offsets = [run.committed(version).offset.low_rank for version in range(1, 5)]
    assert len(active) == 2
    for name in manifest.names:
        values = [offset[name].svd.dense() for offset in offsets]
        changed = [not np.array_equal(before, after) for before, after in pairwise(values)]
        assert changed == [False, name in active, name in active], name
