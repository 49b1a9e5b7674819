"""Pre-training on images that a few steps can tell apart: it learns, repeats, and writes what a run can tune."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.data.images import ImageData
from benchmarks.vision.pretrain import Epoch, Pretraining, pretrain
from edge_client.model.manifest_writer import write_manifest
from protocol.manifest import Pooling, Task, TaskKind

TINY = Pretraining(
    image_size=8,
    hidden_size=16,
    blocks=1,
    heads=2,
    mlp_size=16,
    epochs=6,
    batch_size=8,
    learning_rate=1e-2,
    shift=1,
)
SHORT = dataclasses.replace(TINY, epochs=1)


def images(count: int, seed: int) -> list[dict[str, Any]]:
    """Noise, darker for class 0 than for class 1."""
    rng = np.random.default_rng(seed)
    return [
        {"image": (rng.integers(0, 128, (8, 8, 3)) + 100 * (label := index % 2)).astype(np.uint8), "label": label}
        for index in range(count)
    ]


DATA = ImageData(labels=("dark", "bright"), train=images(48, 0), selection=[], test=images(20, 1))


def test_it_learns_tells_how_far_it_is_and_writes_a_base_that_a_run_can_tune(tmp_path: Path) -> None:
    epochs: list[Epoch] = []
    found = pretrain(DATA, tmp_path / "vit", TINY, seed=0, on_epoch=epochs.append)
    assert [(each.epoch, each.epochs) for each in epochs] == [(number, 6) for number in range(1, 7)]
    assert epochs[-1].loss < 0.5 * epochs[0].loss
    assert found.accuracy > 0.9
    task = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("a", "b", "c"), pooling=Pooling.MEAN)
    manifest = write_manifest(tmp_path / "vit", task)
    assert manifest.base.architecture == "ViTModel"
    assert [tensor.name for tensor in manifest.dense] == ["classifier.weight", "classifier.bias"]
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        pretrain(DATA, tmp_path / name, SHORT, seed=seed)
    one, same, other = (
        hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).digest()
        for name in ("one", "same", "other")
    )
    assert one == same != other


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "something").touch()
    with pytest.raises(BenchmarkError, match="vit cannot be written"):
        pretrain(DATA, tmp_path / "vit", SHORT, seed=0)
