"""Hand-outs: optimal at every rank, prefixes of one another, alive where the state is zero."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.merge import Factors, GlobalState, Increment, MergeError, handout_errors, make_handout
from aggregator.merge.handout import ROW_NORM
from protocol.codecs import Codec
from protocol.initializers import fresh_rows
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind
from protocol.payload import Layout

SHAPES = {"tall": (9, 4), "square": (6, 6), "row": (1, 7)}
MANIFEST = Manifest(
    base=BaseModel(name="tiny", fingerprint="0" * 64, architecture="Tiny", tokenizer_digest="0" * 64),
    task=Task(kind=TaskKind.EMBEDDING),
    rank_max=8,
    low_rank=tuple(LowRankModule(name=name, out_features=m, in_features=n) for name, (m, n) in SHAPES.items()),
    dense=(DenseTensor(name="head", shape=(2, 3)),),
)
LAYOUT = Layout.of(MANIFEST)

seeds = st.integers(0, 2**32 - 1)
widths = st.integers(0, 8)
ranks = st.integers(1, 10)


def state_of(seed: int, width: int) -> GlobalState:
    rng = np.random.default_rng(seed)
    return GlobalState.zeros(MANIFEST).add(
        Increment(
            low_rank={
                name: Factors(rng.standard_normal((m, width)), rng.standard_normal((width, n)))
                for name, (m, n) in SHAPES.items()
            },
            dense={"head": rng.standard_normal((2, 3))},
        )
    )


@given(seeds, widths, ranks)
def test_a_handout_misses_no_more_than_the_best_approximation_of_its_rank(seed: int, width: int, rank: int) -> None:
    state = state_of(seed, width)
    tensors = make_handout(state, MANIFEST, rank, seed=1)
    for name, module in state.low_rank.items():
        B, A = LAYOUT.factors(tensors.slots, name)
        matrix = module.svd.dense()
        best = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])
        assert np.linalg.norm(matrix - B.astype(float) @ A) <= best + 1e-6 * np.linalg.norm(matrix)
    np.testing.assert_allclose(tensors.dense["head"], state.dense["head"], rtol=1e-6)


@given(seeds, widths, st.integers(1, 9), st.sampled_from(list(Codec)))
def test_a_handout_of_lower_rank_is_a_prefix_of_the_stored_one(seed: int, width: int, rank: int, codec: Codec) -> None:
    state = state_of(seed, width)
    stored = LAYOUT.encode_body(make_handout(state, MANIFEST, 10, seed=7), codec)
    lower = LAYOUT.encode_body(make_handout(state, MANIFEST, rank, seed=7), codec)
    assert stored[: len(lower)] == lower


@given(seeds, widths, ranks)
def test_every_slot_is_alive_and_spare_slots_change_nothing(seed: int, width: int, slots: int) -> None:
    state = state_of(seed, width)
    tensors = make_handout(state, MANIFEST, slots, seed=3)
    for name, module in state.low_rank.items():
        B, A = LAYOUT.factors(tensors.slots, name)
        known = min(module.svd.rank, slots)
        np.testing.assert_allclose(np.linalg.norm(A[:known], axis=1), ROW_NORM, rtol=1e-6)
        assert (np.linalg.norm(A[known:], axis=1) > 0.05).all()
        assert not B[:, known:].any()
        assert B[:, :known].any(axis=0).all()


def test_a_spare_slot_has_the_row_that_the_protocol_gives_it() -> None:
    state = state_of(0, 2)
    _, A = LAYOUT.factors(make_handout(state, MANIFEST, 5, seed=9).slots, "square")
    np.testing.assert_array_equal(A[2:], fresh_rows(9, "square", range(2, 5), 6))


def test_spare_rows_differ_by_seed_module_and_slot() -> None:
    state = GlobalState.zeros(MANIFEST)
    one, other = (make_handout(state, MANIFEST, 4, seed=seed) for seed in (1, 2))
    rows = [LAYOUT.factors(t.slots, "square")[1][slot].tobytes() for t in (one, other) for slot in range(4)]
    assert len(set(rows)) == 8


def test_handout_errors_fall_with_the_rank_and_end_at_zero() -> None:
    svd = state_of(5, 3).low_rank["square"].svd
    errors = handout_errors(svd, [3, 1, 2, 8])
    assert list(errors) == [1, 2, 3, 8]
    assert 1 > errors[1] > errors[2] > errors[3] == errors[8] == 0.0
    assert errors[1] == pytest.approx(np.linalg.norm(svd.dense() - svd.truncate(1).dense()) / svd.norm)
    assert handout_errors(GlobalState.zeros(MANIFEST).low_rank["square"].svd, [2]) == {2: 0.0}


def test_a_state_beyond_float32_is_refused() -> None:
    huge = Increment(low_rank={"square": Factors(np.full((6, 1), 1e39), np.ones((1, 6)))}, dense={})
    with pytest.raises(MergeError, match=r"'square'.*diverged"):
        make_handout(GlobalState.zeros(MANIFEST).add(huge), MANIFEST, 2, seed=0)


def test_a_handout_without_slots_is_refused() -> None:
    with pytest.raises(MergeError, match="at least one slot"):
        make_handout(GlobalState.zeros(MANIFEST), MANIFEST, 0, seed=0)
