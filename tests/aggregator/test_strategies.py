"""A run by any strategy: the journalled state is the strategy's, and devices are told what it needs of them."""

import pickle
from dataclasses import replace

import pytest

from aggregator.merge import ClientUpdate, GlobalState
from aggregator.merge.strategies import Requirement, StrategyName, make_strategy
from aggregator.rounds.merge_rule import merge_rule
from aggregator.rounds.work import version_seed
from aggregator.settings import UsageError, run_config
from protocol import messages
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.payload import Factor, Layout

FRESH_FIRST = (StrategyName.DELTA_FRESH, StrategyName.FLORA)


def settings_of(name):
    return {"strategy": name, "residual_slots": 8 if name in FRESH_FIRST else None}


def strategy_state(world):
    strategy = merge_rule(world.config).strategy
    data = bytes(world.objects.view(world.federation.version.state))
    return strategy, strategy.from_bytes(data, world.manifest)


def merged_by_hand(world, strategy, state, job):
    layout = Layout.of(world.manifest)
    handout = layout.decode_body(world.objects.view(job.base.body), job.base.slots, job.base.codec)
    frozen = (Factor.A,) if Requirement.FROZEN_A in strategy.requires else ()
    sent = Layout.of(world.manifest, frozen=frozen)
    updates = [
        ClientUpdate(
            client=update.client,
            num_examples=update.num_examples,
            rank=2,
            tensors=sent.decode(world.objects.view(update.sha256), 2, Codec.FP32),
            frozen=frozen,
        )
        for update in job.updates
    ]
    return strategy.merge(state, world.manifest, handout, updates)[0]


@pytest.mark.parametrize("name", list(StrategyName))
def test_a_run_merges_by_the_strategy_it_was_made_with(new_world, name):
    world = new_world(**settings_of(name), update_codec=Codec.FP32, rounds=3)
    strategy, before = strategy_state(world)
    start = strategy.start(world.manifest, GlobalState.zeros(world.manifest), version_seed(0, 0))
    assert strategy.to_bytes(before) == strategy.to_bytes(start)
    world.play(size=0.5, residual=True)
    _, after = strategy_state(world)
    assert strategy.to_bytes(after) == strategy.to_bytes(merged_by_hand(world, strategy, before, world.merge.jobs[0]))
    assert all(module.svd.norm > 0 for module in strategy.offset(after, world.manifest).low_rank.values())
    world.restart()
    world.play(size=0.5, residual=True)
    assert world.federation.version.version == 2


@pytest.mark.parametrize("name", list(StrategyName))
def test_strategies_of_one_name_are_equal_and_stay_so_in_another_process(name):
    made = make_strategy(name)
    assert made == make_strategy(name)
    assert pickle.loads(pickle.dumps(made)) == made
    assert hash(made) == hash(make_strategy(name))


@pytest.mark.parametrize("name", list(StrategyName))
def test_a_device_trains_b_alone_where_a_is_shared(new_world, name):
    world = new_world(**settings_of(name), cohort_size=1)
    given = world.device("a").task(residual=True)
    assert given.frozen_factors == ((Factor.A,) if name is StrategyName.FFA else ())
    sent = given.update_layout(world.manifest).object_bytes(2, Codec.BF16)
    whole = Layout.of(world.manifest).object_bytes(2, Codec.BF16)
    assert sent < 0.8 * whole if name is StrategyName.FFA else sent == whole


def test_an_update_with_both_factors_is_refused_where_a_is_frozen(new_world):
    world = new_world(strategy=StrategyName.FFA, cohort_size=1)
    device = world.device("a")
    given = device.task()
    both = device.update(replace(given, frozen_factors=()))
    answer = device.deliver(given, both)
    assert (answer.type, answer.code) == ("NACK", NackCode.SHAPE)


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
