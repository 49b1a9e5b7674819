"""One federation of a study, whole, on a tiny base: what is selected, what is tested, and what is counted."""

import pytest

from aggregator.config import RunConfig
from benchmarks.simulation import Device
from benchmarks.studies.federated import Federated, run_federated, tuned_values
from edge_client.methods.head import Head
from edge_client.methods.lora import Lora
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from protocol.assignment import LocalTraining
from protocol.codecs import Codec
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("bad", "good"), pooling=Pooling.MEAN, max_length=8)


def films(start: int, count: int) -> list[dict]:
    """Rows whose label one word gives away."""
    return [
        {"sentence": f"{('bad', 'good')[i % 2]} w{i % 40} film", "label": i % 2} for i in range(start, start + count)
    ]


@pytest.fixture
def run(tiny_bert):
    base = SharedBase(BaseSettings(model=tiny_bert, quantization=Quantization.FP32, compute_dtype="fp32"))

    def run(method, ranks=(2, 4), rounds=4, **settings):
        manifest = write_manifest(tiny_bert, LABELS, method=method, rank_max=4)
        rate, private = settings.pop("learning_rate", 2e-2), settings.pop("private", {})
        local = LocalTraining(learning_rate=rate, epochs=1, batch_size=8, **private)
        config = RunConfig(
            run="study",
            rounds=rounds,
            cohort_size=2,
            default_rank=4,
            deadline_s=None,
            handout_codec=Codec.FP32,
            update_codec=Codec.FP32,
            local=local,
        )
        given = Federated(
            manifest=manifest,
            config=config,
            base=base,
            parts=[films(0, 24), films(24, 24)],
            ranks=ranks,
            validation=films(100, 20),
            test=films(200, 20),
            metric="accuracy",
            **settings,
        )
        return manifest, run_federated(given)

    return run


def test_the_version_that_validates_best_is_tested(run):
    manifest, record = run(Lora())
    scores = [point["accuracy"] for point in record["curve"]]
    assert [point["round"] for point in record["curve"]] == [0, 1, 2, 3, 4]
    assert record["best"]["round"] == scores.index(max(scores))
    assert record["best"]["validation"] == max(scores) > scores[0]
    assert record["best"]["test"]["accuracy"] > 0.9
    assert record["last"]["round"] == 4
    assert (
        record["tuned"]
        == tuned_values(manifest, 4)
        == sum(t.size for t in manifest.dense) + 4 * Layout.of(manifest).width
    )


def test_a_private_run_says_what_it_cost(run):
    spent = [run(Head(), rounds=rounds, private={"noise_multiplier": 2.0, "delta": 1e-3})[1] for rounds in (1, 2)]
    assert 0.0 < spent[0]["epsilon"] < spent[1]["epsilon"]
    assert spent[0]["delta"] == 1e-3
    assert "epsilon" not in run(Head(), rounds=1)[1]


def test_only_what_is_trained_travels(run):
    manifest, record = run(Head(), ranks=(1, 1), rounds=2)
    size = Layout.of(manifest).object_bytes(0, Codec.FP32)
    assert record["update_bytes"] == size
    frames = record["bytes_up"] - 2 * 2 * size
    assert 0 < frames < 16_000
    assert record["tuned"] * 4 < size < record["tuned"] * 4 + 400


def test_virtual_time_is_that_of_the_slowest_device_of_each_round(run):
    _, record = run(
        Head(), ranks=(1, 1), rounds=3, devices=(Device(assignment_s=1.0), Device(assignment_s=7.0)), score_every=3
    )
    times = [point["virtual_s"] for point in record["curve"]]
    assert times[0] == 0.0
    assert 21.0 <= times[-1] < 30.0
