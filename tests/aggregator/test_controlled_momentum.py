"""A run by controlled momentum: what is remembered of each device outlives crashes, to the bit."""

from dataclasses import replace

import numpy as np
import pytest

from aggregator.optimizers import OptimizerName
from aggregator.rounds.merge_rule import merge_rule
from aggregator.store.states import view_state
from protocol.assignment import LocalTraining
from protocol.codecs import Codec

COHORTS = ("ab", "cd", "ac", "bd")
"""No device is in two rounds running, and none is new in the last two."""
SETTINGS = {
    "rounds": len(COHORTS),
    "server_optimizer": OptimizerName.CONTROLLED_MOMENTUM,
    "update_codec": Codec.FP32,
    "local": LocalTraining(learning_rate=0.01, batch_size=4),
}


@pytest.fixture
def dense_world(new_world, manifest):
    def make(**settings):
        return new_world(manifest=replace(manifest, low_rank=()), **{**SETTINGS, **settings})

    return make


def state_of(world):
    rule = merge_rule(world.config).strategy
    return rule.of_tensors(view_state(world.objects, world.federation.version.state), world.manifest)


def test_a_run_that_is_cut_in_every_round_ends_with_the_same_bits(dense_world):
    whole, cut = dense_world(), dense_world()
    for names in COHORTS:
        whole.play(names)
        given = cut.assigned(names)
        tasks = {device.key: task for device, task in given.items()}
        cut.restart()
        cut.merge.held = True
        for name in names:
            device = cut.device(name)
            task = tasks[device.key]
            device.deliver(task, device.update(task))
        cut.restart()
        cut.poll()
        assert cut.federation.version == whole.federation.version
    assert cut.federation.finished


def test_a_device_s_gradient_is_what_it_sent_over_its_steps_and_their_rate(dense_world):
    world = dense_world()
    given = world.assigned("ab", num_examples=10)
    for device, task in given.items():
        device.deliver(task, device.update(task, size=0.5))
    sent = {task.token: device.update(task, size=0.5) for device, task in given.items()}
    layout = next(iter(given.values())).update_layout(world.manifest)
    expected = [layout.decode(data, 2, Codec.FP32).dense["bias"] / -(3 * 0.01) for data in sent.values()]
    found = [control.gradients["bias"] for control in state_of(world).controls.devices.values()]
    assert len(found) == 2
    for value in expected:  # three steps: ten examples in batches of four
        assert any(np.allclose(value, other, rtol=1e-6) for other in found)
