"""Cohorts in files, as an aggregator finds them when it closes a round, and the same in memory for the others."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aggregator.merge import ClientUpdate, Cohort, EncodedAdapter, Factors, GlobalState, ModuleState, make_handout
from benchmarks.merge.settings import Case, Problem
from protocol.codecs import Codec
from protocol.manifest import BaseModel, LowRankModule, Manifest, Task, TaskKind
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["StoredCase", "store_case"]

Product = tuple[float, "NDArray[np.float32]", "NDArray[np.float32]"]

_BASE_RANK = 96
"""Rank of the model that a round starts from: higher than any hand-out, so that every hand-out leaves something out."""


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """One merge to do, all of it but the model before it in files. Picklable: a process of its own can do it."""

    case: Case
    """What it is."""
    manifest: Manifest
    """Of one module."""
    base: ModuleState
    """``M``."""
    handout: AdapterTensors
    """As it was sent; all zero if there was none."""
    updates: tuple[ClientUpdate, ...]
    """In files."""

    @property
    def module(self) -> LowRankModule:
        """The module."""
        return self.manifest.low_rank[0]

    @property
    def handed(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``B̂₀`` and ``A₀``."""
        return Layout.of(self.manifest).factors(self.handout.slots, self.module.name)

    def cohort(self) -> Cohort:
        """The updates, checked."""
        return Cohort.of(self.updates, self.manifest, self.handout.rank)

    def products(self) -> Iterator[Product]:
        """The same merge as a sum of weighted products, as those need it who know of no hand-out."""
        B, A = self.handed
        if self.case.problem is Problem.DELTA:
            base = self.base.factors()
            yield 1.0, base.left.astype(np.float32), base.right.astype(np.float32)
        for weight, dB, dA in self.cohort().shares(self.module):
            rank = dA.shape[0]
            if self.case.problem is Problem.ABSOLUTE:
                yield weight, dB, dA
            else:
                yield weight, np.hstack([dB, B[:, :rank]]), np.vstack([A[:rank] + dA, dA])


def store_case(case: Case, ranks: Sequence[int], slots: int, seed: int, folder: Path) -> StoredCase:
    """Draws a cohort and writes it.

    Args:
        case: What to draw.
        ranks: Devices draw theirs from these.
        slots: Slots of the hand-out.
        seed: Decides all of it.
        folder: Where the updates go.
    """
    rng = np.random.default_rng([seed, *case.shape, case.clients, case.problem is Problem.DELTA])
    manifest = _manifest(case.shape, slots)
    base, handout = _start(case, manifest, slots, rng)
    updates = tuple(
        _store_update(folder / f"{client}", manifest, int(rng.choice(ranks)), case.problem, rng)
        for client in range(case.clients)
    )
    return StoredCase(case=case, manifest=manifest, base=base, handout=handout, updates=updates)


def _manifest(shape: tuple[int, int], slots: int) -> Manifest:
    return Manifest(
        base=BaseModel(name="benchmark", fingerprint="0" * 64, architecture="Linear", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.EMBEDDING),
        rank_max=slots,
        low_rank=(LowRankModule(name="linear", out_features=shape[0], in_features=shape[1]),),
    )


def _start(case: Case, manifest: Manifest, slots: int, rng: np.random.Generator) -> tuple[ModuleState, AdapterTensors]:
    layout, (rows, columns) = Layout.of(manifest), case.shape
    if case.problem is Problem.ABSOLUTE:
        return ModuleState.zeros(manifest.low_rank[0]), layout.zeros(slots)
    width = min(_BASE_RANK, rows // 4, columns // 4)
    scales = 0.95 ** np.arange(width)
    left, right = rng.standard_normal((rows, width)) * scales, rng.standard_normal((width, columns))
    base = ModuleState.zeros(manifest.low_rank[0]).add(Factors(left, right / np.sqrt(columns)))
    state = GlobalState(low_rank={"linear": base}, dense={})
    body = layout.encode_body(make_handout(state, manifest, slots, seed=0), Codec.BF16)
    return base, layout.decode_body(body, slots, Codec.BF16)


def _store_update(
    path: Path, manifest: Manifest, rank: int, problem: Problem, rng: np.random.Generator
) -> ClientUpdate:
    layout = Layout.of(manifest)
    rank = min(rank, manifest.rank_max)
    scale = 1.0 if problem is Problem.ABSOLUTE else 0.01
    values = scale * rng.standard_normal((rank, layout.width), np.float32) / np.sqrt(layout.width)
    path.write_bytes(layout.encode(AdapterTensors({}, values.astype(np.float32)), Codec.BF16))
    tensors = EncodedAdapter(layout=layout, read=partial(_mapped, path), rank=rank, codec=Codec.BF16)
    return ClientUpdate(client=path.name, num_examples=int(rng.integers(50, 500)), rank=rank, tensors=tensors)


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
