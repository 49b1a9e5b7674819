"""Small cohorts that every strategy accepts, and what became of the model, multiplied out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregator.merge import ClientUpdate, Factors, GlobalState, Increment
from aggregator.merge.strategies import Requirement, Strategy
from protocol.codecs import Codec
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind
from protocol.payload import AdapterTensors, Layout

SHAPES = {"tall": (9, 6), "row": (1, 7), "wide": (5, 8)}
RANK_MAX = 4
SLOTS = 10
"""Room for ``rank_max`` fresh slots and all of the model behind them."""
Drawn = Sequence[tuple[int, int, tuple[str, ...] | None]]
"""Rank, examples and active trainables of each client."""


def manifest_of(shapes: dict[str, tuple[int, int]], rank_max: int) -> Manifest:
    return Manifest(
        base=BaseModel(name="tiny", fingerprint="0" * 64, architecture="Tiny", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.EMBEDDING),
        rank_max=rank_max,
        low_rank=tuple(LowRankModule(name=name, out_features=m, in_features=n) for name, (m, n) in shapes.items()),
        dense=(DenseTensor(name="head", shape=(2, 3)),),
    )


@dataclass
class Bench:
    """One strategy on a small manifest."""

    strategy: Strategy[Any]
    manifest: Manifest

    @property
    def layout(self) -> Layout:
        return Layout.of(self.manifest)

    def start(self, seed: int, width: int = RANK_MAX) -> Any:
        """A state that is some way from the base, of this rank where shapes allow."""
        rng = np.random.default_rng(seed)
        low_rank = {
            m.name: Factors(rng.standard_normal((m.out_features, width)), rng.standard_normal((width, m.in_features)))
            for m in self.manifest.low_rank
        }
        offset = Increment(low_rank=low_rank, dense={"head": rng.standard_normal((2, 3))})
        return self.strategy.start(self.manifest, GlobalState.zeros(self.manifest).add(offset), seed)

    def sent(self, state: Any, codec: Codec = Codec.FP32, seed: int = 0, slots: int = SLOTS) -> AdapterTensors:
        """A hand-out as the clients decode it."""
        made = self.strategy.handout(state, self.manifest, slots, seed)
        return self.layout.decode_body(self.layout.encode_body(made, codec), slots, codec)

    def ranks(self, ranks: Sequence[int]) -> list[int]:
        """These ranks, or the first for all where the strategy wants one."""
        equal = Requirement.EQUAL_RANKS in self.strategy.requires
        return [ranks[0]] * len(ranks) if equal else list(ranks)

    def update(self, client: str, num_examples: int, tensors: AdapterTensors, **changes: Any) -> ClientUpdate:
        """An update that keeps to what the strategy requires."""
        active = changes.get("active")
        if Requirement.FROZEN_A in self.strategy.requires:
            for module in Layout.of(self.manifest, active).low_rank:
                Layout.of(self.manifest, active).factors(tensors.slots, module.name)[1][:] = 0.0
        return ClientUpdate(client=client, num_examples=num_examples, rank=tensors.rank, tensors=tensors, **changes)

    def cohort(self, seed: int, drawn: Drawn) -> list[ClientUpdate]:
        rng = np.random.default_rng([seed, 1])
        ranks = self.ranks([rank for rank, _, _ in drawn])
        return [
            self.update(f"client-{i}", n, random_tensors(Layout.of(self.manifest, active), rank, rng), active=active)
            for i, (rank, (_, n, active)) in enumerate(zip(ranks, drawn, strict=True))
        ]

    def merged(self, state: Any, handout: AdapterTensors, updates: Sequence[ClientUpdate], **settings: Any) -> Any:
        return self.strategy.merge(state, self.manifest, handout, updates, **settings)[0]

    def model(self, state: Any) -> NDArray[np.float64]:
        """The whole model as one vector."""
        offset = self.strategy.offset(state, self.manifest)
        parts = [module.svd.dense().ravel() for module in offset.low_rank.values()]
        return np.concatenate([*parts, *(value.ravel() for value in offset.dense.values())])

    def change(self, handout: AdapterTensors, update: ClientUpdate) -> NDArray[np.float64]:
        """``D_i`` as the same vector, multiplied out from what the client was handed."""
        layout, parts = Layout.of(self.manifest, update.active), []
        for module in self.manifest.low_rank:
            B, A = (part.astype(float) for part in self.layout.factors(handout.slots[: update.rank], module.name))
            if update.active is not None and module.name not in update.active:
                parts.append(np.zeros(B.shape[0] * A.shape[1]))
                continue
            dB, dA = layout.factors(update.tensors.slots, module.name)
            parts.append(((B + dB) @ (A + dA) - B @ A).ravel())
        head = update.tensors.dense.get("head", np.zeros((2, 3))).astype(float)
        return np.concatenate([*parts, head.ravel()])


def random_tensors(layout: Layout, rank: int, rng: np.random.Generator) -> AdapterTensors:
    dense = {tensor.name: rng.standard_normal(tensor.shape).astype(np.float32) for tensor in layout.dense}
    return AdapterTensors(dense, rng.standard_normal((rank, layout.width)).astype(np.float32))


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Relative to the second."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def renamed(update: ClientUpdate, client: str, num_examples: int) -> ClientUpdate:
    return replace(update, client=client, num_examples=num_examples)
