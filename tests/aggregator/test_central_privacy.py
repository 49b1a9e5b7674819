"""A run whose merges have noise: what is committed, what a restart draws again, and what cannot be made private."""

from dataclasses import replace

import numpy as np
import pytest

from aggregator.config import Mode
from aggregator.errors import ConfigError
from aggregator.merge.strategies import StrategyName
from aggregator.merge.weighting import Weighting
from aggregator.optimizers import OptimizerName
from aggregator.privacy.accountant import epsilon
from aggregator.status import run_status
from tests.aggregator.test_feasibility import told

PRIVATE = {"server_noise_multiplier": 2.0, "server_clip_norm": 0.5, "weights": Weighting.UNIFORM}


def values(world):
    state = world.state()
    modules = [state.low_rank[module.name].factors().dense().ravel() for module in world.manifest.low_rank]
    return np.concatenate([*modules, *(array.ravel() for array in state.dense.values())])


def test_a_version_has_the_noise_that_is_accounted_for_on_every_value(new_world, manifest):
    wide = tuple(replace(module, out_features=120, in_features=90) for module in manifest.low_rank)
    world = new_world(manifest=replace(manifest, low_rank=wide), **PRIVATE, server_learning_rate=0.5)
    world.play(size=0.0)
    world.poll()
    found = values(world)
    assert world.federation.version.version == 1
    assert np.std(found) == pytest.approx(0.5 * 2.0 * 0.5 / 2, rel=0.02)  # η·σ·C/K
    assert found[-3:].all()  # dense ones, too


def test_a_device_moves_the_model_by_its_part_at_most_beside_the_noise(new_world):
    quiet = {**PRIVATE, "server_noise_multiplier": 0.01, "server_clip_norm": 1e-3}
    world = new_world(**quiet)
    world.play(size=10.0)
    world.poll()
    noise = 0.01 * 1e-3 / 2
    assert 0 < np.linalg.norm(values(world)) <= 1e-3 + 5 * noise * np.sqrt(values(world).size)


def test_a_restart_in_the_merge_draws_the_same_noise_again(new_world):
    world = new_world(**PRIVATE)
    world.merge.held = True
    world.play()
    world.poll()
    (job,) = world.merge.jobs
    world.restart()
    world.poll()
    (again,) = world.merge.jobs
    assert again.rule == job.rule
    assert world.federation.version.version == 1


def test_two_runs_and_two_rounds_have_noise_of_their_own(new_world):
    seeds = []
    for world in (new_world(**PRIVATE), new_world(**PRIVATE)):
        for _ in range(2):
            world.play(size=0.0)
            world.poll()
        seeds += [job.rule.strategy.noise.seed for job in world.merge.jobs]
    assert len(set(seeds)) == 4


def test_updates_that_come_again_get_other_noise(new_world):
    """Else who sends the same twice would see whether anybody else was there: two steps alike, or not."""
    world = new_world(**PRIVATE)
    for _ in range(2):
        for device, task in world.assigned().items():
            layout = task.update_layout(world.manifest)
            device.deliver(task, layout.encode(layout.zeros(task.rank), task.update_codec))
        world.poll()
    first, second = world.merge.jobs
    assert [one.sha256 for one in first.updates] == [other.sha256 for other in second.updates]
    assert first.rule.strategy.noise.seed != second.rule.strategy.noise.seed


def test_no_device_is_told_the_secret(new_world):
    world = new_world(**PRIVATE)
    task = next(iter(world.assigned().values()))
    world.play()
    secret = world.journal.get_meta("noise_secret")
    assert len(bytes.fromhex(secret)) == 32
    assert secret.encode() not in task.to_json() + world.config.to_json() + world.manifest.to_json()


def test_the_operator_sees_the_cost_of_the_merges_so_far(new_world):
    world = new_world(**PRIVATE)
    found = []
    for _ in range(2):
        found.append(run_status(world.federation, world.hub.devices, {}, world.now).epsilon)
        world.play(size=0.0)
        world.poll()
    assert found == [0.0, epsilon(2.0, 1, 1e-5)]


def test_a_run_without_noise_costs_no_account(new_world):
    world = new_world()
    assert run_status(world.federation, world.hub.devices, {}, world.now).epsilon is None
    assert world.journal.get_meta("noise_secret") is None


def test_rounds_that_the_budget_does_not_last_for_are_refused_also_later(new_world, manifest):
    three = epsilon(2.0, 3, 1e-5)
    assert "3 rounds at server_noise_multiplier 2.0 cost" in told(
        manifest, **PRIVATE, rounds=3, server_epsilon_max=three - 0.01
    )
    world = new_world(**PRIVATE, rounds=3, server_epsilon_max=three + 0.01)
    with pytest.raises(ConfigError, match="4 rounds at server_noise_multiplier"):
        world.federation.extend(1)
    assert world.federation.config.rounds == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"weights": Weighting.NUM_EXAMPLES}, "each device would change what all others count"),
        ({"strategy": StrategyName.FEDIT}, "noise goes onto deltas alone"),
        ({"retention": 0.5}, "it depends on who was there"),
        ({"server_optimizer": OptimizerName.MOMENTUM}, "would see the sum before the noise"),
        ({"mode": Mode.ASYNC}, "mode async"),
        ({"probe_round": 1}, "which layers are chosen would tell"),
        ({"server_noise_multiplier": 0.0}, "server_clip_norm is for central privacy"),
        ({"server_noise_multiplier": 0.0, "server_epsilon_max": 3.0}, "server_epsilon_max is for central privacy"),
        ({"server_noise_multiplier": -1.0}, "server_noise_multiplier is -1.0"),
        ({"server_noise_multiplier": 1e-9}, "server_noise_multiplier is 1e-09"),
        ({"server_clip_norm": 0.0}, "server_clip_norm is 0.0"),
        ({"server_delta": 1.0}, "server_delta is 1.0"),
        ({"server_epsilon_max": 0.0}, "server_epsilon_max is 0.0"),
    ],
)
def test_what_cannot_be_made_private_is_refused_with_the_reason(manifest, settings, reason):
    assert not told(manifest, **PRIVATE)
    assert reason in told(manifest, **PRIVATE | settings)
