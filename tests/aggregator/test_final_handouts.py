"""What devices keep when a run ends: the best adapter of their rank, whatever was handed out to train."""

import hashlib

import numpy as np
import pytest

from aggregator.errors import StoreCorrupt
from aggregator.merge.strategies import StrategyName
from aggregator.rounds.merge_rule import merge_rule
from aggregator.store.retention import needed_objects
from aggregator.store.states import view_state
from protocol import messages
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.payload import Layout

FRESH_FIRST = (StrategyName.DELTA_FRESH, StrategyName.FLORA)


def play(world, rounds=1, size=0.3):
    """Rounds of two devices, of one rank, that take the residual."""
    world.play(rounds=rounds, size=size, residual=True)


def fetched(device, handout):
    data = b""
    while len(data) < handout.object_bytes:
        data += bytes(device.say(messages.Get(digest=handout.digest, offset=len(data), length=1 << 20)).payload)
    assert hashlib.sha256(data).hexdigest() == handout.digest
    return data


def model_of(world):
    strategy = merge_rule(world.config).strategy
    state = strategy.of_tensors(view_state(world.objects, world.federation.version.state), world.manifest)
    return strategy.offset(state, world.manifest)


def finished(world, name="c", **changes):
    answer = world.device(name).ready(**changes)
    assert isinstance(answer, messages.Finished)
    return answer


@pytest.mark.parametrize("name", list(StrategyName))
def test_a_device_keeps_the_best_adapter_of_its_rank_under_every_strategy(new_world, name):
    world = new_world(strategy=name, residual_slots=8, rounds=2, handout_codec=Codec.FP32, update_codec=Codec.FP32)
    play(world, rounds=2)
    layout, model, default = Layout.of(world.manifest), model_of(world), world.config.default_rank
    for rank in (default,) if name is StrategyName.FEDIT else (1, 2, 3, 4):
        device = world.device("c")
        slots = 8 if name in FRESH_FIRST else rank
        answer = device.ready(rank=rank, residual=name in FRESH_FIRST)
        kept = layout.decode(fetched(device, answer.handout), slots, Codec.FP32)
        assert (answer.rank, answer.handout.slots) == (rank, slots)
        np.testing.assert_allclose(kept.dense["bias"], model.dense["bias"], rtol=1e-6)
        for module in world.manifest.low_rank:
            B, A = layout.factors(kept.slots[:rank], module.name)
            u, s, vt = np.linalg.svd(model.low_rank[module.name].svd.dense())
            np.testing.assert_allclose(B @ A, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-5 * s[0])


def test_only_the_last_rounds_version_has_adapters_to_keep(new_world):
    world = new_world(strategy=StrategyName.DELTA_ROTATE, rounds=2, keep_versions=None)
    play(world, rounds=2)
    before, last = world.journal.versions()[1:]
    assert before.final_digest is None
    assert last.final_digest not in (None, last.body_digest)
    assert {last.final_digest, last.body_digest} < needed_objects(world.journal, 0)


def test_where_hand_outs_are_the_best_already_nothing_is_stored_twice(new_world):
    world = new_world(rounds=1)
    play(world)
    last = world.journal.versions()[-1]
    assert last.final_digest == last.body_digest


def test_what_devices_keep_is_served_after_a_restart_which_notices_if_it_is_damaged(new_world):
    world = new_world(strategy=StrategyName.DELTA_ROTATE, rounds=1)
    play(world)
    told = finished(world, rank=2).handout
    world.restart()
    device = world.device("c")
    assert device.ready(rank=2).handout == told
    fetched(device, told)
    path = world.objects.path(world.federation.version.final)
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(StoreCorrupt):
        world.restart()


def test_a_run_that_goes_on_hands_out_what_is_trained_from_again(new_world):
    world = new_world(strategy=StrategyName.FLORA, residual_slots=8, rounds=1)
    play(world)
    device = world.device("a")
    kept = device.ready(residual=True).handout
    world.federation.extend(1)
    play(world)
    answer = device.say(messages.Get(digest=kept.digest, offset=0, length=9))
    assert (answer.type, answer.code) == ("NACK", NackCode.UNKNOWN)
    assert finished(world, residual=True).version == 2


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_crash_around_the_last_merge_ends_in_the_same_version(new_world, point):
    whole, broken = (new_world(strategy=StrategyName.DELTA_FRESH, residual_slots=8, rounds=1) for _ in range(2))
    play(whole)
    broken.merge.held = True
    play(broken)
    broken.poll()
    if point == "after":
        broken.merge.step()  # the objects are there, the version is not committed
    broken.restart()
    broken.poll()
    assert broken.federation.finished
    assert broken.federation.version == whole.federation.version


def test_a_model_that_the_number_format_cannot_hold_leaves_what_was_handed_out(new_world):
    """Factors of a slot average that fit float16 while the singular values of their product do not."""
    world = new_world(strategy=StrategyName.ZERO_PADDING, rounds=1, handout_codec=Codec.FP16, update_norm_max=1e6)
    play(world, size=5e3)
    assert world.federation.finished
    assert world.federation.version.final is None
    answer = finished(world, rank=2)
    fetched(world.device("c"), answer.handout)


@pytest.mark.parametrize("name", FRESH_FIRST)
def test_a_device_that_takes_no_residual_is_told_so_where_it_would_not_see_the_model(new_world, name):
    world = new_world(strategy=name, residual_slots=8)
    device = world.device("a")
    answer = device.ready(residual=False) or device.inbox[-1]
    assert (answer.type, answer.code) == ("NACK", NackCode.RANK)
    assert "residual=True" in answer.reason
