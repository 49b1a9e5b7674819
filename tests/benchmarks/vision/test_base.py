"""The base model of vision studies is made once, and found again."""

import numpy as np
import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.data.tasks import PRETRAINING, TASKS
from benchmarks.vision import base
from benchmarks.vision.base import vision_base
from benchmarks.vision.pretrain import Pretraining

CLASSES = (*PRETRAINING.classes, *TASKS["cifar10"].classes)


@pytest.fixture
def data(tmp_path):
    """A few images of every class."""
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    arrays = {f"x_{split}": rng.integers(0, 256, (40, 32, 32, 3), np.uint8) for split in ("train", "test")}
    labels = {f"y_{split}": np.arange(40) % 10 for split in ("train", "test")}
    np.savez(tmp_path / "data" / "cifar10" / "some.npz", classes=np.array(CLASSES), **arrays, **labels)
    return tmp_path / "data"


def test_the_two_halves_share_no_class():
    assert len(set(CLASSES)) == 10


def test_a_base_model_is_pretrained_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        base, "Pretraining", lambda: Pretraining(epochs=1, blocks=1, hidden_size=16, heads=2, mlp_size=16)
    )
    said = []
    first = vision_base(data, tmp_path, seed=0, say=said.append)
    assert "20 images of airplane" in said[0]
    assert vision_base(data, tmp_path, seed=0, say=said.append) == first
    assert said[-1] == f"the base model is {first}"
    assert (tmp_path / "vit-cifar10-0" / "model.safetensors").is_file()


def test_missing_data_are_told(tmp_path):
    with pytest.raises(BenchmarkError, match=r"cifar10.*is no file or folder"):
        vision_base(tmp_path, tmp_path, seed=0, say=print)
