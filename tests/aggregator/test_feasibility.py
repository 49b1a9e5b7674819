"""Settings that cannot be run together are refused when the run is made, with the reason."""

import math
from dataclasses import replace

import pytest

from aggregator.config import Mode, RunConfig
from aggregator.errors import ConfigError
from aggregator.feasibility import check_feasible, faults_of
from aggregator.merge import GlobalState
from aggregator.merge.strategies import StrategyName
from aggregator.merge.weighting import Weighting
from aggregator.optimizers import OptimizerName
from aggregator.rounds.merge_rule import merge_rule
from protocol.assignment import LocalTraining
from protocol.manifest import Task, TaskKind

GOOD = RunConfig(run="r", default_rank=2)
OTHERS = sorted(set(StrategyName) - {StrategyName.DELTA})
WITHOUT_OPTIMIZER = sorted(name for name in StrategyName if not name.startswith("delta"))
FRESH_FIRST = (StrategyName.DELTA_FRESH, StrategyName.FLORA)


def told(manifest, **settings):
    """What is wrong with these settings, in one line."""
    return "; ".join(faults_of(replace(GOOD, **settings), manifest))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("retention", -0.1), ("retention", 1.1), ("retention", math.nan)),
        *(("server_learning_rate_decay", -1.0), ("server_learning_rate_decay", math.inf)),
        *(("server_beta1", 1.0), ("server_beta2", -0.1), ("server_tau", 0.0), ("server_tau", math.nan)),
        *(("server_dense_learning_rate", 0.0), ("server_dense_learning_rate", math.inf), ("server_momentum_rank", 0)),
        ("server_population", 0),
    ],
)
def test_a_number_out_of_range_is_named(manifest, setting, value):
    users = {
        "server_momentum_rank": OptimizerName.MOMENTUM,
        "server_population": OptimizerName.CONTROLLED_MOMENTUM,
    }
    optimizer = users.get(setting, OptimizerName.ADAM)
    assert setting in told(manifest, server_optimizer=optimizer, **{setting: value})


@pytest.mark.parametrize("dense_only", [False, True])
def test_devices_that_name_no_rank_are_handed_one_that_there_is(manifest, dense_only):
    """Also where no module has a rank: a hand-out has so many slots, of no values."""
    manifest = replace(manifest, low_rank=()) if dense_only else manifest
    assert not told(manifest, default_rank=manifest.rank_max)
    assert "the manifest allows 1..4" in told(manifest, default_rank=manifest.rank_max + 1)


@pytest.mark.parametrize("name", OTHERS)
def test_retention_is_deltas_alone(manifest, name):
    assert f"retention 0.5 with strategy {name}" in told(manifest, strategy=name, retention=0.5)


@pytest.mark.parametrize("name", list(OptimizerName))
@pytest.mark.parametrize("strategy", WITHOUT_OPTIMIZER)
def test_a_server_optimizer_needs_a_merged_update(manifest, strategy, name):
    found = told(manifest, strategy=strategy, server_optimizer=name, residual_slots=8)
    assert (f"server_optimizer {name} with strategy {strategy}" in found) is (name is not OptimizerName.SGD)


@pytest.mark.parametrize("name", [OptimizerName.ADAGRAD, OptimizerName.ADAM, OptimizerName.YOGI])
def test_an_adaptive_optimizer_needs_a_dense_tensor(manifest, name):
    assert not told(manifest, server_optimizer=name)
    assert "the manifest has none" in told(replace(manifest, dense=()), server_optimizer=name)


@pytest.mark.parametrize(
    ("setting", "value", "users"),
    [
        ("server_beta1", 0.5, "adagrad, adam, controlled-momentum, momentum, yogi"),
        ("server_beta2", 0.5, "adam, yogi"),
        ("server_tau", 0.5, "adagrad, adam, yogi"),
        ("server_dense_learning_rate", 0.5, "adagrad, adam, yogi"),
        ("server_momentum_rank", 5, "momentum"),
        ("server_population", 5, "controlled-momentum"),
    ],
)
@pytest.mark.parametrize("name", list(OptimizerName))
def test_a_number_that_the_optimizer_has_no_use_for_is_refused(manifest, name, setting, value, users):
    found = told(replace(manifest, low_rank=()), server_optimizer=name, **{setting: value})
    assert found == ("" if name in users.split(", ") else f"{setting} with server_optimizer {name}: it is for {users}")


def test_controls_are_for_dense_tensors_of_one_version_and_one_correction(manifest):
    settings = {"server_optimizer": OptimizerName.CONTROLLED_MOMENTUM}
    assert "the manifest has low-rank modules" in told(manifest, **settings)
    dense = replace(manifest, low_rank=())
    assert not told(dense, **settings, server_population=100)
    assert "controlled-momentum is for mode sync" in told(dense, **settings, mode=Mode.ASYNC)
    assert "both correct for who is drawn" in told(dense, **settings, weights=Weighting.HORVITZ_THOMPSON)


@pytest.mark.parametrize("name", FRESH_FIRST)
@pytest.mark.parametrize("slots", [None, 3, 4])
def test_fresh_slots_leave_room_for_the_model(manifest, name, slots):
    found = told(manifest, strategy=name, residual_slots=slots)
    assert f"strategy {name} hands out 4 fresh slots" in found
    assert "such as 8" in found
    assert not told(manifest, strategy=name, residual_slots=5)


@pytest.mark.parametrize(
    "settings", [{"weights": Weighting.HORVITZ_THOMPSON}, {"retention": 0.5}, {"strategy": StrategyName.FLORA}]
)
def test_what_needs_one_version_or_a_draw_is_for_synchronous_rounds(manifest, settings):
    assert "mode async" in told(manifest, mode=Mode.ASYNC, residual_slots=8, **settings) or "mode sync" in told(
        manifest, mode=Mode.ASYNC, residual_slots=8, **settings
    )
    assert not told(manifest, residual_slots=8, **settings)


def test_all_faults_come_in_one_message_at_the_start_of_a_run(manifest):
    wrong = replace(GOOD, strategy=StrategyName.HLORA, retention=0.5, server_optimizer=OptimizerName.ADAM)
    with pytest.raises(ConfigError, match=r"retention 0\.5 with strategy hlora.*server_optimizer adam with strategy"):
        check_feasible(wrong, manifest)


@pytest.mark.parametrize("optimizer", list(OptimizerName))
@pytest.mark.parametrize("strategy", list(StrategyName))
def test_whatever_is_feasible_can_be_started(manifest, strategy, optimizer):
    config = replace(GOOD, strategy=strategy, server_optimizer=optimizer, residual_slots=8)
    if optimizer is OptimizerName.CONTROLLED_MOMENTUM:
        manifest = replace(manifest, low_rank=())
    if not faults_of(config, manifest):
        rule = merge_rule(config).strategy
        state = rule.start(manifest, GlobalState.zeros(manifest), 0)
        assert rule.to_bytes(rule.from_bytes(rule.to_bytes(state), manifest)) == rule.to_bytes(state)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epsilon_max": 0.0}, "epsilon_max is 0.0, expected above 0"),
        ({"epsilon_max": -2.0}, "epsilon_max is -2.0, expected above 0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"delta": 1.0}, "delta is 1.0"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier is -1.0"),
        ({"noise_multiplier": 1e-3}, "noise_multiplier is 0.001"),
        ({"noise_multiplier": math.nan}, "noise_multiplier is nan"),
    ],
)
def test_settings_of_private_training_that_give_no_privacy_are_named(manifest, settings, reason):
    assert reason in told(manifest, local=LocalTraining(**{"noise_multiplier": 1.0} | settings))


@pytest.mark.parametrize(("name", "value"), [("epsilon_max", 8.0), ("delta", 1e-6), ("clip_norm", 0.5)])
def test_a_budget_without_noise_is_refused(manifest, name, value):
    assert f"{name} with noise_multiplier 0.0: nothing is private" in told(
        manifest, local=LocalTraining(**{name: value})
    )
    language = replace(manifest, task=Task(kind=TaskKind.CAUSAL_LM))
    assert not told(language, local=LocalTraining(**{name: value}, noise_multiplier=1.0))


def test_a_loss_that_contrasts_a_batch_is_never_private(manifest):
    contrastive = replace(manifest, task=Task(kind=TaskKind.EMBEDDING))
    assert "no example has a gradient of its own" in told(contrastive, local=LocalTraining(noise_multiplier=1.0))
    assert not told(contrastive)
