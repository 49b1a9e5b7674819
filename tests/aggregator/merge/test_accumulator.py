"""Sums of products in bounded memory, against the matrices."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator.merge import Factors, Scratch
from aggregator.merge.accumulator import CappedSum, LosslessSum, add_product, buffer_rows
from benchmarks.anonymous_memory import anonymous_bytes

Term = tuple[NDArray[np.float32], NDArray[np.float32], float]
SHAPE = (40, 30)


def terms(seed: int, ranks: list[int]) -> list[Term]:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.standard_normal((rank, SHAPE[0]), np.float32),
            rng.standard_normal((rank, SHAPE[1]), np.float32),
            float(rng.uniform(0.1, 1.0)),
        )
        for rank in ranks
    ]


def oracle(drawn: list[Term]) -> NDArray[np.float64]:
    parts = (weight * left.astype(np.float64).T @ right.astype(np.float64) for left, right, weight in drawn)
    return sum(parts, np.zeros(SHAPE))


def dense(value: Factors | NDArray[np.float64]) -> NDArray[np.float64]:
    return value.dense() if isinstance(value, Factors) else value


@given(st.integers(0, 99), st.lists(st.integers(1, 9), max_size=12), st.integers(1, 12))
def test_a_sum_is_the_sum_however_small_its_buffers(seed: int, ranks: list[int], rows: int) -> None:
    drawn = terms(seed, ranks)
    total = LosslessSum(SHAPE, rows, Scratch())  # a wrong bound costs time, never terms
    for left, right, weight in drawn:
        total.add(left, right, weight)
    value = total.finish()
    np.testing.assert_allclose(dense(value), oracle(drawn), atol=1e-12 * max(1, sum(ranks)))
    assert isinstance(value, Factors) == (sum(ranks) <= rows)


def test_terms_that_are_zero_take_no_room() -> None:
    total = LosslessSum(SHAPE, 3, Scratch())
    rows = np.ones((5, SHAPE[0])), np.ones((5, SHAPE[1]))
    rows[0][[0, 3]] = 0.0
    rows[1][1] = 0.0
    for _ in range(4):
        total.add(np.zeros((7, SHAPE[0])), np.ones((7, SHAPE[1])))
    total.add(*rows)
    value = total.finish()
    assert isinstance(value, Factors)
    assert value.width == 2


@given(st.integers(0, 99), st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 30))
def test_a_capped_sum_keeps_its_rank_and_its_certificate_bounds_the_error(
    seed: int, ranks: list[int], cap: int
) -> None:
    drawn = terms(seed, ranks)
    total = CappedSum(SHAPE, cap, Scratch())
    for left, right, weight in drawn:
        total.add(left, right, weight)
    kept, exact = total.finish(), oracle(drawn)
    error = float(np.linalg.norm(kept.dense() - exact))
    best = float(np.linalg.norm(np.linalg.svd(exact, compute_uv=False)[cap:]))
    assert kept.width <= cap
    assert best - 1e-10 <= error <= total.discarded + 1e-10
    if sum(ranks) <= cap:
        assert total.discarded < 1e-10


def test_a_product_is_added_in_place() -> None:
    rng = np.random.default_rng(0)
    matrix, factors = rng.standard_normal(SHAPE), Factors(rng.standard_normal((40, 3)), rng.standard_normal((3, 30)))
    expected = matrix + factors.dense()
    add_product(matrix, factors)
    np.testing.assert_allclose(matrix, expected, atol=1e-13)


@pytest.mark.parametrize("resident", [0, 1 << 30])
def test_scratch_arrays_are_arrays_wherever_they_lie(tmp_path: Path, resident: int) -> None:
    array = Scratch(tmp_path, resident).empty((3, 5))
    array[:] = 7.0
    assert array.shape == (3, 5)
    assert (array == 7.0).all()
    assert not list(tmp_path.iterdir()), "a file with a name would outlive a killed process"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's anonymous memory")
def test_large_scratch_arrays_are_not_anonymous_memory(tmp_path: Path) -> None:
    before = anonymous_bytes()
    kept = Scratch(tmp_path, 0).empty((8, 1 << 20))
    kept[:] = 1.0
    assert anonymous_bytes() - before < 32 << 20
    assert float(kept.sum()) == 8 << 20


def test_buffers_hold_all_terms_until_the_matrix_is_smaller() -> None:
    assert buffer_rows((4096, 4096), 2047) == 2047
    assert buffer_rows((4096, 4096), 2048) < 2047
    assert buffer_rows((2, 2), 100) == 100
