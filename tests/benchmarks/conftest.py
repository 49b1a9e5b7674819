"""Data that several benchmarks' tests run on."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data.tasks import PRETRAINING, TASKS


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A task whose label one word gives away."""
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for split, rows in (("train", 200), ("test", 64)):
        lines = [{"sentence": f"{('bad', 'good')[i % 2]} w{i % 40} film", "label": i % 2} for i in range(rows)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder.parent


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A few pictures of every class of CIFAR-10."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    classes = np.array((*PRETRAINING.classes, *TASKS["cifar10"].classes))
    counts = {"train": 200, "test": 40}
    arrays = {f"x_{split}": rng.integers(0, 256, (count, 32, 32, 3), np.uint8) for split, count in counts.items()}
    labels = {f"y_{split}": np.arange(count) % 10 for split, count in counts.items()}
    np.savez(folder / "some.npz", classes=classes, **arrays, **labels)
    return folder.parent
