import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from edge_client.training import metrics

labelled = st.integers(2, 5).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)), min_size=1, max_size=40),
    )
)


@given(labelled)
def test_classification_agrees_with_scikit_learn(case):
    classes, pairs = case
    predicted, labels = (np.array(side) for side in zip(*pairs, strict=True))
    found = metrics.classification(predicted, labels, classes)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    constant = len(set(labels)) == 1 or len(set(predicted)) == 1
    expected = 0.0 if constant else sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert found["matthews"] == pytest.approx(expected, abs=1e-12)
    if classes == 2:
        assert found["f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, zero_division=0.0))


def test_regression_agrees_with_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(50), rng.standard_normal(50)
    found = metrics.regression(x, y)
    assert found["mse"] == pytest.approx(np.mean((x - y) ** 2))
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(x, y).statistic)


def test_a_constant_prediction_correlates_with_nothing():
    assert metrics.regression(np.ones(3), np.arange(3.0))["pearson"] == 0.0


def test_retrieval_ranks_the_own_target_and_ties_count_against_it():
    targets = np.eye(3, dtype=np.float32)
    assert metrics.retrieval(targets, targets)["mrr"] == 1.0
    queries = targets[[1, 0, 2]]
    assert metrics.retrieval(queries, targets, cutoff=1) == {
        "mrr": pytest.approx((1 / 3 + 1 / 3 + 1) / 3),
        "recall@1": pytest.approx(1 / 3),
    }
    assert metrics.retrieval(np.ones((3, 1), np.float32), np.ones((3, 1), np.float32))["mrr"] == pytest.approx(1 / 3)


def test_perplexity_is_the_exponential_of_the_loss_and_finite():
    assert metrics.language(2.0)["perplexity"] == pytest.approx(math.exp(2.0))
    assert math.isfinite(metrics.language(1e9)["perplexity"])
