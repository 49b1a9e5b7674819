"""A run by any strategy that the daemon serves: the journalled state is the strategy's."""

import pytest

from aggregator.config import RunConfig
from aggregator.errors import ConfigError
from aggregator.merge import ClientUpdate, GlobalState
from aggregator.merge.strategies import StrategyName, make_strategy
from aggregator.rounds.work import version_seed
from aggregator.settings import UsageError, run_config
from protocol import messages
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.payload import Layout

SERVED = ("delta", "hlora", "raflora", "zero-padding", "hetlora", "fedit")


def strategy_state(world):
    strategy = make_strategy(world.config.strategy)
    data = bytes(world.objects.view(world.federation.version.state))
    return strategy, strategy.from_bytes(data, world.manifest)


def round_of_two(world):
    devices = [world.device(name) for name in "ab"]
    for device in devices:
        device.ready()
    for device in devices:
        given = device.task()
        device.deliver(given, device.update(given, size=0.5))


def caught_merge(world):
    """The merge job that the next round makes, in a list."""
    seen, submit = [], world.merge.submit
    world.merge.submit = lambda fn, job: (seen.append(job), submit(fn, job))[1]
    return seen


def merged_by_hand(world, strategy, state, job):
    layout = Layout.of(world.manifest)
    handout = layout.decode_body(world.objects.view(job.base.body), job.base.slots, job.base.codec)
    updates = [
        ClientUpdate(
            client=update.client,
            num_examples=update.num_examples,
            rank=2,
            tensors=layout.decode(world.objects.view(update.sha256), 2, Codec.FP32),
        )
        for update in job.updates
    ]
    return strategy.merge(state, world.manifest, handout, updates)[0]


@pytest.mark.parametrize("name", SERVED)
def test_a_run_merges_by_the_strategy_it_was_made_with(new_world, name):
    world = new_world(strategy=StrategyName(name), update_codec=Codec.FP32, rounds=3)
    strategy, before = strategy_state(world)
    start = strategy.start(world.manifest, GlobalState.zeros(world.manifest), version_seed(0, 0))
    assert strategy.to_bytes(before) == strategy.to_bytes(start)
    job = caught_merge(world)
    round_of_two(world)
    _, after = strategy_state(world)
    assert strategy.to_bytes(after) == strategy.to_bytes(merged_by_hand(world, strategy, before, job[0]))
    assert all(module.svd.norm > 0 for module in strategy.offset(after, world.manifest).low_rank.values())
    world.restart()
    round_of_two(world)
    assert world.federation.version.version == 2


@pytest.mark.parametrize("name", sorted(set(StrategyName) - set(SERVED)))
def test_a_strategy_for_simulations_alone_is_refused_with_the_reason(manifest, name):
    with pytest.raises(ConfigError, match=f"strategy {name}: (devices keep|an assignment)"):
        RunConfig(run="r", default_rank=2, strategy=StrategyName(name)).check(manifest)


def test_a_device_of_another_rank_is_told_where_one_rank_is_needed(new_world):
    world = new_world(strategy=StrategyName.FEDIT)
    device = world.device("a")
    answer = device.ready(rank=3) or device.inbox[-1]
    assert isinstance(answer, messages.Nack)
    assert answer.code is NackCode.RANK
    assert "merges by fedit, which takes devices of rank 2 alone" in answer.reason


def test_the_command_line_takes_a_strategy_by_name():
    assert run_config("demo", {"strategy": "hlora"}).strategy is StrategyName.HLORA
    with pytest.raises(UsageError, match=r"--strategy: expected one of delta, .*got 'hlroa'"):
        run_config("demo", {"strategy": "hlroa"})
