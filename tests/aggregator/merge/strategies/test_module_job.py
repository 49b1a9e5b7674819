"""One module cut out of a round merges to the same bits, and takes nothing else along."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregator.merge import ClientUpdate, EncodedAdapter, Factors, LowRank
from aggregator.merge.stored_modules import module_tensors
from aggregator.merge.strategies import STRATEGIES, Delta, RoundInput, make_strategy
from aggregator.merge.strategies import module_job as room
from aggregator.merge.strategies.module_job import ModuleJob
from aggregator.optimizers import Momentum
from protocol.codecs import Codec
from protocol.payload import Layout
from tests.aggregator.merge.strategies.bench import RANK_MAX, SHAPES, SLOTS, Bench, manifest_of

CASES: dict[str, Any] = {
    **{name: make_strategy(name) for name in STRATEGIES},
    "delta, momentum": Delta(optimizer=Momentum()),
    "delta, retention": Delta(retention=0.7),
}
CODECS = (Codec.FP32, Codec.INT8)
DRAWN = [(2, 10, None), (1, 30, ("tall", "head")), (3, 5, None), (2, 7, ("head",)), (4, 9, ("row", "wide"))]
LARGE = {"stacked": (420, 380), "small": (20, 30), "many": (40, 200)}
"""Shapes that the cost model keeps as factors or as a matrix once there are some updates."""


@dataclass(frozen=True)
class Held:
    data: bytes

    def __call__(self) -> memoryview:
        return memoryview(self.data)


def encoded(bench: Bench, tensors: Any, active: tuple[str, ...] | None, codec: Codec) -> EncodedAdapter:
    layout = Layout.of(bench.manifest, active)
    return EncodedAdapter(
        layout=layout, read=Held(layout.encode(tensors, codec)), rank=tensors.rank, codec=codec, framed=True
    )


def second_round(bench: Bench, drawn: list[Any], codec: Codec) -> tuple[Any, RoundInput]:
    """A state that a merge brought about, as it is read from its file, and what came back of it, encoded."""
    state = bench.start(0)
    state = bench.merged(state, bench.sent(state, slots=SLOTS), bench.cohort(0, drawn))
    state = bench.strategy.from_bytes(bench.strategy.to_bytes(state), bench.manifest)
    handout = encoded(bench, bench.sent(state, codec), None, codec)
    updates = [replace(u, tensors=encoded(bench, u.tensors, u.active, codec)) for u in bench.cohort(1, drawn)]
    return state, RoundInput(manifest=bench.manifest, handout=handout, updates=tuple(updates))


def bits(merged: Any) -> dict[str, tuple[bytes, tuple[int, ...]]]:
    return {key: (value.tobytes(), value.shape) for key, value in module_tensors(merged).items()}


def same_as_in_the_round(strategy: Any, state: Any, given: RoundInput) -> None:
    whole = strategy.open(state, given)
    for module in given.manifest.low_rank:
        job = ModuleJob.of(strategy, state, given, module, lambda data: Held(data.tobytes()))
        one, report = pickle.loads(pickle.dumps(job)).merge(None)
        other, same_report = whole.merge_module(module)
        assert bits(one) == bits(other)
        assert report == same_report


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("strategy", CASES.values(), ids=CASES)
def test_a_module_alone_merges_to_the_bits_of_the_one_in_its_round(strategy: Any, codec: Codec) -> None:
    bench = Bench(strategy, manifest_of(SHAPES, RANK_MAX))
    same_as_in_the_round(strategy, *second_round(bench, DRAWN, codec))


@pytest.mark.parametrize("name", ["delta", "hlora"])
@pytest.mark.parametrize("clients", [3, 60])
def test_so_do_modules_that_are_held_as_factors_or_as_a_matrix(name: str, clients: int) -> None:
    bench = Bench(make_strategy(name), manifest_of(LARGE, RANK_MAX))
    drawn = [(1 + client % RANK_MAX, 1 + client, None) for client in range(clients)]
    state, given = second_round(bench, drawn, Codec.BF16)
    forms = {type(module.value) for module in bench.strategy.offset(state, bench.manifest).low_rank.values()}
    assert forms == ({LowRank} if clients == 3 else {Factors, np.ndarray})
    same_as_in_the_round(bench.strategy, state, given)


def test_changes_to_earlier_versions_are_cut_out_too() -> None:
    bench = Bench(make_strategy("delta"), manifest_of(SHAPES, RANK_MAX))
    state, given = second_round(bench, DRAWN, Codec.FP32)
    earlier = encoded(bench, bench.sent(bench.start(7)), None, Codec.FP32)
    late = (replace(given.updates[0], staleness=3), *given.updates[1:])
    same_as_in_the_round(bench.strategy, state, replace(given, updates=late, stale={3: earlier}))


def test_what_is_left_for_the_workers_is_the_bytes_of_that_module_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PIECE_BYTES", 1000)
    bench = Bench(make_strategy("delta"), manifest_of(LARGE, RANK_MAX))
    drawn = [(1 + client % RANK_MAX, 1, ("small",) if client % 3 else ("many",)) for client in range(40)]
    state, given = second_round(bench, drawn, Codec.BF16)
    for module in given.manifest.low_rank:
        left: list[NDArray[np.uint8]] = []

        def put(data: NDArray[np.uint8], left: list[NDArray[np.uint8]] = left) -> partial[memoryview]:
            left.append(data)
            return partial(memoryview, b"")

        job = ModuleJob.of(bench.strategy, state, given, module, put)
        ranks = sum(rank for rank, _, active in drawn if module.name in active)
        assert sum(data.size for data in left) == 2 * ranks * (module.out_features + module.in_features)
        largest = 2 * RANK_MAX * (module.out_features + module.in_features)
        assert all(data.size <= 1000 + largest for data in left)
        whole = len(bench.strategy.to_bytes(state))
        assert len(pickle.dumps(job)) < whole, "the other modules' state stays here"


def test_an_update_that_is_decoded_is_refused() -> None:
    bench = Bench(make_strategy("delta"), manifest_of(SHAPES, RANK_MAX))
    state, given = second_round(bench, DRAWN, Codec.FP32)
    decoded: list[ClientUpdate] = bench.cohort(1, DRAWN)
    with pytest.raises(TypeError, match="expected hand-outs and updates as EncodedAdapter"):
        ModuleJob.of(
            bench.strategy,
            state,
            replace(given, updates=tuple(decoded)),
            given.manifest.low_rank[0],
            lambda data: Held(data.tobytes()),
        )
