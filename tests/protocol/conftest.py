"""A small run to describe payloads with."""

import pytest

from protocol.initializers import Distribution, Initializer
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind


@pytest.fixture
def manifest() -> Manifest:
    """Two low-rank modules, a head with an initializer, a bias and a scalar."""
    return Manifest(
        base=BaseModel(name="tiny", fingerprint="0" * 64, architecture="TinyModel", tokenizer_digest="1" * 64),
        task=Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes")),
        rank_max=8,
        low_rank=(
            LowRankModule(name="layer.0.query", out_features=4, in_features=6),
            LowRankModule(name="layer.0.value", out_features=3, in_features=6),
        ),
        dense=(
            DenseTensor(
                name="head.weight",
                shape=(2, 4),
                initializer=Initializer(distribution=Distribution.NORMAL, scale=0.02, seed=7),
            ),
            DenseTensor(name="head.bias", shape=(2,)),
            DenseTensor(name="gate", shape=()),
        ),
    )
