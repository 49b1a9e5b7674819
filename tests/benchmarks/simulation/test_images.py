"""Whole runs on images: three devices tune one vision transformer, by LoRA of mixed ranks and by visual prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.config import RunConfig
from benchmarks.scoring import Scorer
from benchmarks.simulation import SimulatedRun
from edge_client.methods import Method
from edge_client.methods.lora import Lora
from edge_client.methods.vpt import VPT
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import LocalTraining
from protocol.codecs import Codec
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

TASK = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("red", "blue"), pooling=Pooling.MEAN)
RANKS = (1, 2, 4)


def images(count: int, seed: int) -> list[dict[str, Any]]:
    """Noise, one colour of it brighter: which is the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        label = index % 2
        pixels = rng.integers(0, 128, (8, 8, 3))
        pixels[..., 2 * label] += 60
        rows.append({"image": pixels.astype(np.uint8), "label": TASK.labels[label]})
    return rows


@pytest.mark.parametrize(
    ("method", "quantization"), [(Lora(), Quantization.FP32), (Lora(), Quantization.NF4), (VPT(), Quantization.NF4)]
)
def test_devices_tune_a_vision_transformer_together(
    method: Method, quantization: Quantization, tiny_vit: Path, tmp_path: Path
) -> None:
    manifest = write_manifest(tiny_vit, TASK, method=method, rank_max=4)
    base = SharedBase(BaseSettings(model=tiny_vit, quantization=quantization, compute_dtype="fp32"))
    trainers = [TorchTrainer.sharing(base, images(16, seed), rank=rank) for seed, rank in enumerate(RANKS)]
    config = RunConfig(
        run="images",
        rounds=3,
        cohort_size=3,
        default_rank=2,
        deadline_s=None,
        handout_codec=Codec.FP32,
        update_codec=Codec.FP32,
        local=LocalTraining(learning_rate=0.02, epochs=3, batch_size=8),
    )
    with SimulatedRun(tmp_path, config, manifest, trainers) as run:
        run.until_finished()
        state = run.committed(3).offset
        sizes = [row.size for row in run.journal.uploads(3)]
    layout = Layout.of(manifest)
    body = [4 * (layout.zeros(rank).slots.size + sum(t.size for t in layout.dense)) for rank in RANKS]
    assert all(0 <= size - values < 4096 for size, values in zip(sorted(sizes), body, strict=True))
    assert all(np.linalg.norm(value) > 0 for value in state.dense.values())
    assert all(module.svd.norm > 0 for module in state.low_rank.values())
    assert Scorer(base, manifest, images(40, 99)).score(state, rank=4)["accuracy"] > 0.9
