"""How much each client counts."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.merge import ClientUpdate, MergeError
from aggregator.merge.strategies import Delta
from aggregator.merge.weights import Weighted, weigh_by_examples, weigh_inversely, weigh_uniformly
from tests.aggregator.merge.strategies.bench import RANK_MAX, SHAPES, Bench, manifest_of

BENCH = Bench(Delta(), manifest_of(SHAPES, RANK_MAX))
seeds = st.integers(0, 2**32 - 1)


def cohort(seed: int, examples: list[int]) -> list[ClientUpdate]:
    return BENCH.cohort(seed, [(1 + i % RANK_MAX, n, None) for i, n in enumerate(examples)])


def step(seed: int, weighted: Weighted) -> np.ndarray:
    """By how much the model moves."""
    state = BENCH.start(seed)
    moved = BENCH.merged(state, BENCH.sent(state), weighted.updates, step=weighted.step)
    return BENCH.model(moved) - BENCH.model(state)


def mean(seed: int, updates: list[ClientUpdate], weights: list[float]) -> np.ndarray:
    handout = BENCH.sent(BENCH.start(seed))
    return np.asarray(sum(w * BENCH.change(handout, u) for w, u in zip(weights, updates, strict=True)))


def test_by_examples_each_example_counts_the_same() -> None:
    updates = cohort(0, [1, 3])
    np.testing.assert_allclose(step(0, weigh_by_examples(updates)), mean(0, updates, [0.25, 0.75]), atol=1e-11)


def test_uniformly_each_client_counts_the_same() -> None:
    updates = cohort(1, [1, 3, 100])
    np.testing.assert_allclose(step(1, weigh_uniformly(updates)), mean(1, updates, [1 / 3] * 3), atol=1e-11)


@settings(max_examples=5)
@given(seeds, st.lists(st.integers(1, 10**6), min_size=4, max_size=4), st.sampled_from([1, 2, 3]))
def test_inverse_probability_weights_are_unbiased_over_all_cohorts(seed: int, examples: list[int], size: int) -> None:
    """All cohorts of a fixed size are as likely, so ``π = size/4``; the mean over them is the mean over all clients."""
    everyone, total = cohort(seed, examples), sum(examples)
    inclusion = {update.client: size / 4 for update in everyone}
    cohorts = list(combinations(everyone, size))
    average = sum(step(seed, weigh_inversely(drawn, inclusion, total)) for drawn in cohorts) / len(cohorts)
    expected = mean(seed, everyone, [n / total for n in examples])
    np.testing.assert_allclose(average, expected, atol=1e-9 * np.abs(expected).max())


def test_inverse_probability_weights_are_unbiased_where_clients_are_drawn_unequally() -> None:
    """Each client by its own coin; the empty cohort moves nothing."""
    everyone, examples = cohort(7, [5, 50, 500]), [5, 50, 500]
    inclusion = dict(zip((update.client for update in everyone), (0.2, 0.5, 0.9), strict=True))
    average = np.zeros_like(mean(7, everyone, [0.0] * 3))
    for size in (1, 2, 3):
        for drawn in combinations(everyone, size):
            chance = np.prod([inclusion[u.client] if u in drawn else 1 - inclusion[u.client] for u in everyone])
            average += chance * step(7, weigh_inversely(drawn, inclusion, 555))
    expected = mean(7, everyone, [n / 555 for n in examples])
    np.testing.assert_allclose(average, expected, atol=1e-9 * np.abs(expected).max())


def test_with_everybody_in_the_cohort_inverse_probability_weights_are_those_by_examples() -> None:
    updates = cohort(2, [3, 5])
    weighted = weigh_inversely(updates, {update.client: 1.0 for update in updates}, 8)
    assert weighted.step == 1.0
    np.testing.assert_allclose(step(2, weighted), step(2, weigh_by_examples(updates)), atol=1e-11)


@pytest.mark.parametrize(
    ("inclusion", "total", "message"),
    [
        ({}, 10, "'client-0': its inclusion probability must be in"),
        ({"client-0": 0.0, "client-1": 0.5}, 10, "'client-0': its inclusion probability must be in"),
        ({"client-0": 1.5, "client-1": 0.5}, 10, "got 1.5"),
        ({"client-0": float("nan"), "client-1": 0.5}, 10, "got nan"),
        ({"client-0": 0.5, "client-1": 0.5}, 3, "total_examples must count all clients"),
    ],
)
def test_probabilities_that_cannot_be_are_refused(inclusion: dict[str, float], total: int, message: str) -> None:
    with pytest.raises(MergeError, match=message):
        weigh_inversely(cohort(0, [2, 2]), inclusion, total)


def test_clients_of_weight_zero_and_nobody_at_all_are_refused_by_the_merge() -> None:
    state = BENCH.start(0)
    handout = BENCH.sent(state)
    none = weigh_inversely([], {}, 5)
    with pytest.raises(MergeError, match="without updates"):
        BENCH.merged(state, handout, none.updates)
    with pytest.raises(MergeError, match="num_examples must be in"):
        BENCH.merged(state, handout, weigh_by_examples(cohort(0, [0, 3])).updates)
