"""The exact state: its sums, its two forms and its bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.merge import Factors, GlobalState, Increment, LowRank, MergeError
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind

seeds = st.integers(0, 2**32 - 1)
SHAPES = {"tall": (9, 4), "square": (6, 6), "row": (1, 7)}


def manifest(**renamed: str) -> Manifest:
    return Manifest(
        base=BaseModel(name="tiny", fingerprint="0" * 64, architecture="Tiny", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.EMBEDDING),
        rank_max=8,
        low_rank=tuple(
            LowRankModule(name=renamed.get(name, name), out_features=m, in_features=n)
            for name, (m, n) in SHAPES.items()
        ),
        dense=(DenseTensor(name="head", shape=(2, 3)),),
    )


def increment(seed: int, width: int) -> Increment:
    rng = np.random.default_rng(seed)
    return Increment(
        low_rank={
            name: Factors(rng.standard_normal((m, width)), rng.standard_normal((width, n)))
            for name, (m, n) in SHAPES.items()
        },
        dense={"head": rng.standard_normal((2, 3))},
    )


@given(seeds, st.lists(st.integers(0, 8), max_size=6))
def test_a_state_is_the_sum_of_its_increments(seed: int, widths: list[int]) -> None:
    state = GlobalState.zeros(manifest())
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    head = np.zeros((2, 3))
    for step, width in enumerate(widths):
        one = increment(seed + step, width)
        state = state.add(one)
        head += one.dense["head"]
        for name, factors in one.low_rank.items():
            total[name] += factors.dense()
    for name, module in state.low_rank.items():
        np.testing.assert_allclose(module.svd.dense(), total[name], atol=1e-11)
    np.testing.assert_array_equal(state.dense["head"], head)


def test_factors_are_kept_while_they_are_smaller_and_the_matrix_from_then_on() -> None:
    state = GlobalState.zeros(manifest()).add(increment(0, 2))
    assert isinstance(state.low_rank["square"].value, LowRank)
    grown = state.add(increment(1, 1))
    assert isinstance(grown.low_rank["square"].value, np.ndarray)
    assert isinstance(state.low_rank["square"].value, LowRank), "adding changed the old state"


@given(seeds, st.integers(0, 4))
def test_adding_and_taking_away_again_leaves_the_state(seed: int, width: int) -> None:
    state = GlobalState.zeros(manifest()).add(increment(seed, width))
    there = increment(seed + 1, 2)
    back = state.add(there).add(there.scaled(-1.0))
    for name, module in back.low_rank.items():
        np.testing.assert_allclose(module.svd.dense(), state.low_rank[name].svd.dense(), atol=1e-12)


@given(seeds, st.integers(0, 6))
def test_bytes_round_trip_bit_for_bit(seed: int, width: int) -> None:
    state = GlobalState.zeros(manifest()).add(increment(seed, width))
    data = state.to_bytes()
    again = GlobalState.from_bytes(data, manifest())
    assert again.to_bytes() == data
    assert again.add(increment(seed, 1)).to_bytes() == state.add(increment(seed, 1)).to_bytes()


def test_stored_states_of_another_run_are_refused_by_name() -> None:
    data = GlobalState.zeros(manifest()).to_bytes()
    with pytest.raises(MergeError, match="'other/discarded'"):
        GlobalState.from_bytes(data, manifest(row="other"))


@pytest.mark.parametrize("keep", [0, 7, 60, -1])
def test_truncated_files_are_refused(keep: int) -> None:
    data = GlobalState.zeros(manifest()).add(increment(0, 1)).to_bytes()
    with pytest.raises(MergeError, match="cannot be read"):
        GlobalState.from_bytes(data[:keep], manifest())


def test_stored_states_with_nan_are_refused() -> None:
    state = GlobalState.zeros(manifest())
    state.dense["head"][0, 0] = np.nan
    with pytest.raises(MergeError, match=r"'head/dense' holds NaN"):
        GlobalState.from_bytes(state.to_bytes(), manifest())


@pytest.mark.parametrize(
    "wrong",
    [
        Increment(low_rank={"nobody": Factors(np.ones((9, 1)), np.ones((1, 4)))}, dense={}),
        Increment(low_rank={"tall": Factors(np.ones((4, 1)), np.ones((1, 9)))}, dense={}),
        Increment(low_rank={}, dense={"head": np.ones((3, 2))}),
    ],
)
def test_increments_that_do_not_fit_are_refused(wrong: Increment) -> None:
    with pytest.raises(MergeError, match="the increment"):
        GlobalState.zeros(manifest()).add(wrong)
