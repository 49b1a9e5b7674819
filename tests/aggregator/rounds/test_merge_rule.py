"""From settings to what one round is merged by."""

import pickle

import pytest

from aggregator.config import RunConfig
from aggregator.merge.strategies import Delta, Hlora, StrategyName
from aggregator.merge.weighting import Weighting
from aggregator.optimizers import (
    Adaptive,
    ControlVariates,
    Momentum,
    MovingAverage,
    OptimizerName,
    PerKind,
    SecondMoment,
    Sgd,
)
from aggregator.rounds.merge_rule import MergeRule, merge_rule


def config(**settings):
    return RunConfig(run="r", **settings)


def test_the_defaults_are_the_plain_delta_merge():
    assert merge_rule(config()) == MergeRule() == MergeRule(strategy=Delta(), step=1.0)


def test_the_step_is_the_decayed_server_learning_rate():
    decaying = config(server_learning_rate=0.8, server_learning_rate_decay=1.0)
    assert [merge_rule(decaying, n).step for n in (1, 2, 4)] == [0.8, 0.4, 0.2]
    assert merge_rule(config(strategy=StrategyName.HLORA, server_learning_rate=0.5)) == MergeRule(
        strategy=Hlora(), step=0.5
    )


def test_an_optimizer_takes_the_step_and_its_decay():
    settings = config(
        server_optimizer=OptimizerName.MOMENTUM,
        server_learning_rate=0.8,
        server_learning_rate_decay=1.0,
        server_beta1=0.5,
        server_momentum_rank=3,
    )
    expected = Delta(optimizer=Momentum(learning_rate=0.4, beta=0.5, rank_max=3))
    assert merge_rule(settings, 2) == MergeRule(strategy=expected, step=1.0)


@pytest.mark.parametrize("rule", list(SecondMoment))
def test_an_adaptive_optimizer_is_for_dense_tensors_and_low_rank_modules_take_a_plain_step(rule):
    settings = config(
        server_optimizer=OptimizerName(rule.value),
        server_learning_rate=0.8,
        server_learning_rate_decay=1.0,
        server_dense_learning_rate=0.02,
        server_beta1=0.1,
        server_beta2=0.2,
        server_tau=0.3,
    )
    dense = Adaptive(rule=rule, learning_rate=0.01, beta1=0.1, beta2=0.2, tau=0.3)
    optimizer = PerKind(low_rank=Sgd(learning_rate=0.4), dense=dense)
    assert merge_rule(settings, 2) == MergeRule(strategy=Delta(optimizer=optimizer))


def test_controlled_momentum_corrects_what_it_averages():
    settings = config(
        server_optimizer=OptimizerName.CONTROLLED_MOMENTUM,
        server_learning_rate=0.8,
        server_learning_rate_decay=1.0,
        server_beta1=0.5,
        server_population=100,
    )
    expected = Delta(optimizer=MovingAverage(learning_rate=0.4, beta=0.5), controls=ControlVariates(population=100))
    assert merge_rule(settings, 2) == MergeRule(strategy=expected, step=1.0)


def test_retention_and_weights_find_their_place():
    found = merge_rule(config(retention=0.7, weights=Weighting.UNIFORM))
    assert found == MergeRule(strategy=Delta(retention=0.7), weighting=Weighting.UNIFORM)


@pytest.mark.parametrize("name", list(StrategyName))
def test_a_rule_is_the_same_in_another_process(name):
    rule = merge_rule(config(strategy=name))
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(rule) == hash(merge_rule(config(strategy=name)))
