"""Data that several benchmarks' tests run on."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A task whose label one word gives away."""
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for split, rows in (("train", 200), ("test", 64)):
        lines = [{"sentence": f"{('bad', 'good')[i % 2]} w{i % 40} film", "label": i % 2} for i in range(rows)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder.parent
