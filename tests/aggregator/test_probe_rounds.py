"""A round in which devices score layers: what is selected is journalled, and trained from then on."""

from dataclasses import replace

import pytest

from aggregator.config import Mode
from aggregator.feasibility import faults_of
from aggregator.merge.weighting import Weighting
from aggregator.rounds.machine import Phase
from protocol import messages
from protocol.assignment import AssignmentKind, LocalTraining
from protocol.errors import NackCode
from protocol.manifest import DenseTensor, LowRankModule
from protocol.probes import LAYERS_MAX, LayerReport, Probe

SCORES = {"a": (1.0, 5.0, 2.0, 3.0), "b": (1.0, 1.0, 2.0, 4.0)}
"""Means of equal weight: 1, 3, 2, 3.5."""


@pytest.fixture
def deep(manifest):
    """A manifest of four layers, a low-rank one among them, and a head."""
    prefixes = tuple(DenseTensor(name=f"prefix.{layer}", shape=(2, 3)) for layer in range(3))
    last = LowRankModule(name="encoder.layer.3.query", out_features=6, in_features=5)
    return replace(manifest, dense=(DenseTensor(name="classifier.bias", shape=(3,)), *prefixes), low_rank=(last,))


@pytest.fixture
def probing(new_world, deep):
    def make(**settings):
        return new_world(manifest=deep, **{"rounds": 4, "probe_round": 2, "kept_layers": 0.5, **settings})

    return make


def report(token, scores, num_examples=10, kept_share=None):
    metrics = LayerReport(scores=scores, kept_share=kept_share).metrics
    return messages.Report(token=token, num_examples=num_examples, metrics=metrics)


def answer(world, names="ab", **changes):
    """All ask, get the probe and answer it."""
    given = world.assigned(names)
    for device, task in given.items():
        reply = device.say(report(task.token, SCORES[device.key[0]], **changes))
        assert isinstance(reply, messages.Ack), reply
    return given


SELECTED = ("classifier.bias", "prefix.1", "encoder.layer.3.query")


def test_after_the_probe_the_best_layers_are_trained_and_nothing_else_moves(probing):
    world = probing()
    world.play()
    before = world.state()
    tasks = answer(world).values()
    assert {(task.kind, task.probe) for task in tasks} == {(AssignmentKind.PROBE, Probe.LAYER_SCORES)}
    world.poll()
    assert world.federation.version.version == 2
    assert world.state().to_bytes() == before.to_bytes()
    given = world.assigned()
    assert {task.active for task in given.values()} == {SELECTED}
    assert {task.kind for task in given.values()} == {AssignmentKind.TRAIN}
    for device, task in given.items():
        device.deliver(task, device.update(task))
    after = world.state()
    moved = {name for name, value in after.dense.items() if (value != before.dense[name]).any()}
    assert moved == {"classifier.bias", "prefix.1"}
    assert after.low_rank["encoder.layer.3.query"].svd.norm != before.low_rank["encoder.layer.3.query"].svd.norm
    world.play()
    assert world.federation.finished


def test_a_restart_at_any_point_selects_the_same(probing):
    world = probing()
    world.play()
    given = world.assigned()
    first, second = given
    world.restart()
    device = world.device("a")
    assert isinstance(device.say(report(given[first].token, SCORES["a"])), messages.Ack)
    world.restart()
    assert world.federation.round.submitted == (first.key,)
    again = world.device("a")
    assert isinstance(again.say(report(given[first].token, SCORES["a"])), messages.Ack)  # its acknowledgement was lost
    world.merge.held = True
    assert isinstance(world.device("b").say(report(given[second].token, SCORES["b"])), messages.Ack)
    world.poll()
    assert world.federation.round.phase is Phase.MERGING
    world.restart()
    world.poll()
    assert world.federation.version.version == 2
    world.restart()
    assert {task.active for task in world.assigned().values()} == {SELECTED}


def test_devices_say_themselves_how_many_to_keep(probing):
    world = probing(kept_layers=None)
    world.play()
    tasks = answer(world, kept_share=0.25).values()
    assert {task.probe for task in tasks} == {Probe.KEPT_LAYERS}
    world.poll()
    assert {task.active for task in world.assigned().values()} == {("classifier.bias", "encoder.layer.3.query")}


def test_an_answer_weighs_by_its_examples(probing):
    world = probing(kept_layers=0.25)
    world.play()
    for device, task in world.assigned().items():
        heavy = device.key[0] == "a"
        device.say(report(task.token, SCORES[device.key[0]], num_examples=100 if heavy else 1))
    world.poll()
    assert {task.active for task in world.assigned().values()} == {("classifier.bias", "prefix.1")}


def test_where_devices_count_alike_no_answer_weighs_more_by_the_examples_it_claims(probing):
    world = probing(kept_layers=0.25, weights=Weighting.UNIFORM)
    world.play()
    for device, task in world.assigned().items():
        claimed = 1_000_000 if device.key[0] == "a" else 1
        device.say(report(task.token, SCORES[device.key[0]], num_examples=claimed))
    world.poll()
    assert {task.active for task in world.assigned().values()} == {("classifier.bias", "encoder.layer.3.query")}


def test_a_probe_may_come_first(probing):
    world = probing(probe_round=1)
    answer(world)
    world.poll()
    world.play(rounds=3)
    assert world.federation.finished


@pytest.mark.parametrize(
    ("wrong", "told", "code"),
    [
        ({"scores": (1.0, 2.0, 3.0)}, "expected scores of 4 layers, got 3", NackCode.SHAPE),
        ({"kept_share": 0.5}, "'kept_share' has no place", NackCode.SHAPE),
        ({"num_examples": 0}, "num_examples is 0", NackCode.NUM_EXAMPLES),
    ],
)
def test_a_wrong_answer_is_refused_and_its_device_is_not_waited_for(probing, wrong, told, code):
    world = probing(probe_round=1)
    device, task = next(iter(world.assigned().items()))
    reply = device.say(report(task.token, **{"scores": (1.0, 2.0, 3.0, 4.0), **wrong}))
    assert isinstance(reply, messages.Nack)
    assert (reply.code, told in reply.reason, reply.ref) == (code, True, task.token)
    assert device.key not in world.federation.round.in_state("assigned")


def test_metrics_for_an_update_and_an_update_for_metrics_are_refused(probing):
    world = probing()
    device, task = next(iter(world.assigned().items()))
    reply = device.say(report(task.token, (1.0, 2.0, 3.0, 4.0)))
    assert (reply.code, "asks for an update" in reply.reason) == (NackCode.SHAPE, True)
    world = probing(probe_round=1)
    device, task = next(iter(world.assigned().items()))
    reply = device.offer(task, device.update(task))
    assert (reply.code, "asks for metrics" in reply.reason) == (NackCode.SHAPE, True)


def test_an_answer_to_what_is_not_yours_or_over_is_refused(probing):
    world = probing(probe_round=1, over_selection=1.5)
    given = world.assigned("abc")
    stranger = world.device("d")
    (first, task), (_, other), (late, last) = given.items()
    assert stranger.say(report(task.token, SCORES["a"])).code is NackCode.UNKNOWN
    for device, mine in ((first, task), (world.device("b"), other)):
        assert isinstance(device.say(report(mine.token, SCORES["a"])), messages.Ack)
    world.poll()
    assert late.say(report(last.token, SCORES["a"])).code is NackCode.STALE


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"probe_round": 4}, "probe_round is 4, expected 1..3"),
        ({"probe_round": 0}, "probe_round is 0"),
        ({"kept_layers": 0.0}, "kept_layers is 0.0"),
        ({"kept_layers": 1.5}, "kept_layers is 1.5"),
        ({"probe_round": None}, "kept_layers goes with probe_round"),
        ({"mode": Mode.ASYNC}, "probe_round is for mode sync"),
        ({"local": LocalTraining(noise_multiplier=1.0)}, "has no noise"),
        ({"server_noise_multiplier": 1.0}, "tell of devices without noise"),
    ],
)
def test_settings_that_cannot_be_run_are_told(probing, deep, settings, told):
    config = probing().config
    assert not faults_of(config, deep)
    assert told in "; ".join(faults_of(replace(config, **settings), deep))


def test_a_manifest_without_layers_or_with_too_many_is_told(probing, manifest, deep):
    config = probing().config
    assert "belong to 0 layer(s)" in "; ".join(faults_of(config, manifest))
    many = replace(deep, dense=(DenseTensor(name=f"prefix.{LAYERS_MAX}", shape=(1,)),))
    assert f"has {LAYERS_MAX + 1} layers, a report holds {LAYERS_MAX}" in "; ".join(faults_of(config, many))
