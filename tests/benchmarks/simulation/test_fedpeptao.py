"""FedPepTAO whole, on a tiny model: prefixes, a round of probes, partial prompts, controlled momentum."""

from itertools import pairwise

import numpy as np
import pytest

from aggregator.config import RunConfig
from aggregator.optimizers import OptimizerName
from aggregator.rounds.layers import selected_layers
from benchmarks.simulation import SimulatedRun
from edge_client.methods.prefix import Prefix
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import LocalTraining
from protocol.codecs import Codec
from protocol.manifest import Pooling, Quantization, Task, TaskKind
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


def test_what_is_not_selected_rests_from_then_on(finished):
    run, manifest = finished
    offsets = [run.committed(version).offset.dense for version in range(5)]
    active = selected_layers(run.journal, 2).active(manifest.names)
    for name in manifest.names:
        changed = [not np.array_equal(before[name], after[name]) for before, after in pairwise(offsets)]
        assert changed == [True, False, name in active, name in active], name
