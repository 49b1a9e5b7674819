"""The experiment: hand out, change nothing, take back, ten times over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from aggregator.merge import ClientUpdate, Factors, GlobalState, Increment
from aggregator.merge.strategies import STRATEGIES, Delta, Property, Requirement, Strategy, make_strategy
from benchmarks.collapse.settings import PARTICIPATIONS, RANKS, ROUNDS
from protocol.codecs import Codec
from protocol.manifest import BaseModel, LowRankModule, Manifest, Task, TaskKind
from protocol.payload import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CASES", "Course", "run_all"]

CASES: Mapping[str, Strategy[Any]] = MappingProxyType(
    {**{name: make_strategy(name) for name in STRATEGIES}, "delta (retention .7)": Delta(retention=0.7)}
)
"""Every strategy, and the stabiliser of the default."""
_CODEC = Codec.BF16


@dataclass(frozen=True, kw_only=True)
class Course:
    """What became of one model. Norms are Frobenius norms over all modules."""

    strategy: str
    """Name in :data:`CASES`."""
    seed: int
    """Which model, and which cohorts."""
    participation: float
    """Share of the clients in each cohort."""
    ranks: Sequence[int]
    """Rank of each client."""
    norm: Sequence[float]
    """``‖M_t‖ / ‖M_0‖``, from round 0."""
    change: Sequence[float]
    """``‖M_t − M_0‖ / ‖M_0‖``, from round 0."""
    spectrum: Sequence[float]
    """``σ_j`` after the last round over ``σ_j`` at the start, the first module's, by ``j``."""

    @property
    def declared_no_op(self) -> bool:
        """Whether the strategy claims that no-ops change nothing."""
        return Property.NO_OP not in CASES[self.strategy].fails


def run_all(shapes: Sequence[tuple[int, int]], seed: int) -> Iterator[Course]:
    """Runs every strategy at every participation from one model.

    Args:
        shapes: Modules.
        seed: Draws the model and the cohorts.
    """
    manifest = _manifest(shapes)
    start = _model(manifest, seed)
    for participation in PARTICIPATIONS:
        for name in CASES:
            yield _run(name, manifest, start, seed, participation)


def _run(name: str, manifest: Manifest, start: GlobalState, seed: int, participation: float) -> Course:
    strategy = CASES[name]
    ranks = [min(RANKS)] * len(RANKS) if Requirement.EQUAL_RANKS in strategy.requires else list(RANKS)
    rng = np.random.default_rng([seed, 1])
    state: Any = strategy.start(manifest, start, seed)
    first = strategy.offset(state, manifest)
    norm, change = [1.0], [0.0]
    for version in range(ROUNDS):
        cohort = rng.choice(len(ranks), round(participation * len(ranks)), replace=False)
        state = _no_op_round(strategy, state, manifest, {int(i): ranks[i] for i in cohort}, version)
        offset = strategy.offset(state, manifest)
        norm.append(_norm(offset) / _norm(first))
        change.append(_distance(offset, first) / _norm(first))
    module = manifest.low_rank[0].name
    return Course(
        strategy=name,
        seed=seed,
        participation=participation,
        ranks=ranks,
        norm=norm,
        change=change,
        spectrum=_shares(offset.low_rank[module].svd.S, first.low_rank[module].svd.S),
    )


def _no_op_round(
    strategy: Strategy[Any], state: Any, manifest: Manifest, ranks: Mapping[int, int], version: int
) -> Any:
    """One round, over the wire's bf16, in which each client sends zeros."""
    layout, slots = Layout.of(manifest), 2 * manifest.rank_max
    handout = strategy.handout(state, manifest, slots, version)
    received = layout.decode_body(layout.encode_body(handout, _CODEC), slots, _CODEC)
    updates = [
        ClientUpdate(client=f"client-{i:02d}", num_examples=100, rank=rank, tensors=layout.zeros(rank))
        for i, rank in ranks.items()
    ]
    return strategy.merge(state, manifest, received, updates)[0]


def _manifest(shapes: Sequence[tuple[int, int]]) -> Manifest:
    return Manifest(
        base=BaseModel(name="none", fingerprint="0" * 64, architecture="None", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.EMBEDDING),
        rank_max=max(RANKS),
        low_rank=tuple(
            LowRankModule(name=f"module.{index}", out_features=rows, in_features=columns)
            for index, (rows, columns) in enumerate(shapes)
        ),
    )


def _model(manifest: Manifest, seed: int) -> GlobalState:
    """Gaussian factors of the highest rank: a nearly flat spectrum, all of which the highest rank can hold."""
    rng, width = np.random.default_rng([seed, 0]), manifest.rank_max
    low_rank = {
        m.name: Factors(rng.standard_normal((m.out_features, width)), rng.standard_normal((width, m.in_features)))
        for m in manifest.low_rank
    }
    return GlobalState.zeros(manifest).add(Increment(low_rank=low_rank, dense={}))


def _norm(state: GlobalState) -> float:
    return float(np.linalg.norm([module.svd.norm for module in state.low_rank.values()]))


def _distance(one: GlobalState, other: GlobalState) -> float:
    parts = [one.low_rank[name].svd.dense() - module.svd.dense() for name, module in other.low_rank.items()]
    return float(np.linalg.norm([np.linalg.norm(part) for part in parts]))


def _shares(now: NDArray[np.float64], before: NDArray[np.float64]) -> list[float]:
    """A direction that is gone has the share 0."""
    kept = np.zeros(before.size)
    kept[: now.size] = now[: before.size]
    return [float(share) for share in kept / before]
