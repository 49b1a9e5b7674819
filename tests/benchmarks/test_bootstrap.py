import math

import numpy as np
import pytest

from benchmarks.bootstrap import compare_paired


def normal(mean: float, n: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, n)


def test_interval_agrees_with_the_normal_approximation() -> None:
    a = normal(0.3)
    found = compare_paired(a, np.zeros(400))
    half = 1.96 * a.std() / 20
    assert found.difference == pytest.approx(a.mean())
    assert (found.low, found.high) == pytest.approx((a.mean() - half, a.mean() + half), abs=0.01)


def test_p_agrees_with_the_normal_approximation() -> None:
    a = normal(0.1)
    z = a.mean() / (a.std() / 20)
    assert compare_paired(a, np.zeros(400)).p == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)), abs=0.01)


def test_what_all_queries_share_cancels_out() -> None:
    a, b, noise = normal(0.2), np.zeros(400), 100 * normal(0.0, seed=1)
    plain, noisy = compare_paired(a, b), compare_paired(a + noise, b + noise)
    assert noisy.difference == pytest.approx(plain.difference)
    assert noisy.p == pytest.approx(plain.p)


def test_equal_systems_are_not_better() -> None:
    found = compare_paired(normal(0.0), normal(0.0))
    assert (found.difference, found.p, found.better) == (0.0, 1.0, False)


def test_p_is_never_zero() -> None:
    assert compare_paired(np.ones(50), np.zeros(50), resamples=100).p == pytest.approx(1 / 101)


def test_seed_decides_the_draws() -> None:
    a, b = normal(0.05), np.zeros(400)
    assert compare_paired(a, b, seed=1) == compare_paired(a, b, seed=1)
    assert compare_paired(a, b, seed=1) != compare_paired(a, b, seed=2)


@pytest.mark.parametrize(("a", "b"), [(np.ones(3), np.ones(4)), (np.ones(0), np.ones(0)), (np.ones((2, 2)),) * 2])
def test_scores_of_other_queries_are_refused(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ValueError, match="same queries"):
        compare_paired(a, b)
