import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.retrieval import ranks_of_targets, recall_at, reciprocal_ranks


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_rank_is_the_place_in_the_sorted_list(n: int, seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(n * n).reshape(n, n).astype(float)
    order = np.argsort(-scores, axis=1)
    expected = [int(np.flatnonzero(order[i] == i)[0]) + 1 for i in range(n)]
    assert ranks_of_targets(scores).tolist() == expected
    np.testing.assert_allclose(reciprocal_ranks(scores), 1 / np.array(expected))
    assert recall_at(scores, 3) == np.mean([rank <= 3 for rank in expected])


def test_a_model_that_scores_all_alike_gains_nothing() -> None:
    assert ranks_of_targets(np.zeros((5, 5))).tolist() == [5] * 5


@pytest.mark.parametrize("scores", [np.zeros((2, 3)), np.zeros(3), np.full((2, 2), np.nan)])
def test_scores_that_are_no_finite_square_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="square of finite scores"):
        ranks_of_targets(scores)
