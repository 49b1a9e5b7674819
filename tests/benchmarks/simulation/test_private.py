"""Private runs as a whole, with models that are really trained: every device's books, and who is left in the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aggregator.config import RunConfig
from aggregator.merge.weighting import Weighting
from benchmarks.simulation import SimulatedRun
from edge_client.model.manifest_writer import write_manifest
from edge_client.privacy import epsilon
from edge_client.storage.ledger import Charge, Ledger
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import LocalTraining
from protocol.manifest import Pooling, Quantization, Task, TaskKind

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16, pooling=Pooling.MEAN)
LOCAL = LocalTraining(noise_multiplier=1.0, batch_size=6, epochs=0.5, learning_rate=1e-2)
EXAMPLES = (6, 36, 36)


@pytest.fixture
def finished(tiny_bert, tmp_path):
    """A run of three devices, one of which has few examples, driven to its end."""
    manifest = write_manifest(tiny_bert, LABELS, rank_max=4)

    def finished(**settings) -> SimulatedRun:
        base = SharedBase(BaseSettings(model=tiny_bert, quantization=Quantization.FP32, device="cpu"))
        trainers = [
            TorchTrainer.sharing(
                base,
                [{"sentence": f"{'good' if i % 2 else 'bad'} w{i % 40}", "label": i % 2} for i in range(count)],
                rank=number + 1,
                noise_seed=number,
            )
            for number, count in enumerate(EXAMPLES)
        ]
        config = RunConfig(**{"run": "test", "default_rank": 2, "cohort_size": 2, "local": LOCAL, **settings})
        with SimulatedRun(tmp_path, config, manifest, trainers) as run:
            run.until_finished()
        return run

    return finished


def ledgers(folder):
    return [Ledger(folder / f"device-{number}" / "privacy.json") for number in range(len(EXAMPLES))]


def test_every_device_pays_for_what_it_trained_and_stops_at_its_budget(finished, tmp_path):
    few = Charge(sampling_rate=1.0, noise_multiplier=1.0, steps=1)
    once, twice = (epsilon([replace(few, steps=rounds)], 1e-5) for rounds in (1, 2))
    budget = (once + twice) / 2
    finished(rounds=3, local=replace(LOCAL, epsilon_max=budget))
    small, *others = ledgers(tmp_path)
    assert small.charges == (few,)  # it was drawn again, and declined
    assert {charge.sampling_rate for other in others for charge in other.charges} == {1 / 6}
    assert sum(charge.steps // 3 for other in others for charge in other.charges) == 3 * 2 - 1
    assert all(epsilon(ledger.charges, 1e-5) <= budget for ledger in (small, *others))


def test_a_run_can_be_private_on_the_device_and_in_the_merge(finished, tmp_path):
    run = finished(
        rounds=2, cohort_size=3, weights=Weighting.UNIFORM, server_noise_multiplier=1.0, server_clip_norm=0.1
    )  # fmt: skip
    assert [sum(charge.steps for charge in ledger.charges) for ledger in ledgers(tmp_path)] == [2, 6, 6]
    assert run.federation.version.version == 2
    assert np.isfinite(run.traffic.sent)
