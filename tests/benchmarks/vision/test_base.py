"""The base model of vision studies is made once, and found again."""

import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.data.tasks import PRETRAINING, TASKS
from benchmarks.vision import base
from benchmarks.vision.base import vision_base
from benchmarks.vision.pretrain import Pretraining

CLASSES = (*PRETRAINING.classes, *TASKS["cifar10"].classes)


def test_the_two_halves_share_no_class():
    assert len(set(CLASSES)) == 10


def test_a_base_model_is_pretrained_once(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(
        base, "Pretraining", lambda: Pretraining(epochs=1, blocks=1, hidden_size=16, heads=2, mlp_size=16)
    )
    said = []
    first = vision_base(pictures, tmp_path, seed=0, say=said.append)
    assert "100 images of airplane" in said[0]
    assert vision_base(pictures, tmp_path, seed=0, say=said.append) == first
    assert said[-1] == f"the base model is {first}"
    assert (tmp_path / "vit-cifar10-0" / "model.safetensors").is_file()


def test_missing_data_are_told(tmp_path):
    with pytest.raises(BenchmarkError, match=r"cifar10.*is no file or folder"):
        vision_base(tmp_path, tmp_path, seed=0, say=print)
