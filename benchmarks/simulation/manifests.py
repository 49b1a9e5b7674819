"""Manifests without a model, for simulations with the NumPy trainer."""

from __future__ import annotations

from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind

__all__ = ["toy_manifest"]


def toy_manifest(*, rank_max: int = 8, modules: int = 2, width: int = 12, dense: int = 3) -> Manifest:
    """A small universe of square low-rank modules and one dense vector.

    Args:
        rank_max: Highest rank.
        modules: Low-rank modules.
        width: Their width.
        dense: Entries of the dense vector; 0 leaves it out.
    """
    return Manifest(
        base=BaseModel(name="toy", fingerprint="0" * 64, architecture="Toy", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.EMBEDDING),
        rank_max=rank_max,
        low_rank=tuple(
            LowRankModule(name=f"layer.{index}", out_features=width, in_features=width) for index in range(modules)
        ),
        dense=(DenseTensor(name="bias", shape=(dense,)),) if dense else (),
    )
