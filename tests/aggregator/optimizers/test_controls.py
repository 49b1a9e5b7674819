"""Controlled momentum: its recursion against the formulas, and what a cohort's order, share and rest may not change."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator.merge import ClientUpdate, GlobalState, MergeError
from aggregator.merge.strategies import Delta, Requirement
from aggregator.merge.tensor_file import Tensors
from aggregator.optimizers import Control, Controls, ControlVariates, Momentum, MovingAverage
from protocol.manifest import DenseTensor
from protocol.payload import AdapterTensors
from tests.aggregator.merge.strategies.bench import manifest_of

MANIFEST = replace(
    manifest_of({}, 1), dense=(DenseTensor(name="head", shape=(2, 3)), DenseTensor(name="prefix", shape=(4,)))
)
NAMES = tuple(tensor.name for tensor in MANIFEST.dense)
CONTROLLED = Delta(optimizer=MovingAverage(learning_rate=0.5, beta=0.6), controls=ControlVariates())
seeds = st.integers(0, 2**32 - 1)


def update(client: str, change: Tensors, **settings: Any) -> ClientUpdate:
    """Of the tensors that are in ``change``; the others were not active."""
    dense = {name: np.asarray(value, np.float32) for name, value in change.items()}
    active = tuple(name for name in NAMES if name in change)
    given = {"num_examples": 1, "rank": 1, "active": active, **settings}
    return ClientUpdate(client=client, tensors=AdapterTensors(dense, np.zeros((1, 0), np.float32)), **given)


def start(rule: Delta, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    offset = GlobalState(low_rank={}, dense={t.name: rng.standard_normal(t.shape) for t in MANIFEST.dense})
    return rule.start(MANIFEST, offset, 0)


def merged(rule: Delta, state: Any, updates: Sequence[ClientUpdate], **given: Any) -> Any:
    """The next state; both go through their bytes, as in a run."""
    state = rule.from_bytes(rule.to_bytes(state), MANIFEST)
    after = rule.merge(state, MANIFEST, rule.handout(state, MANIFEST, 1, 0), updates, **given)[0]
    return rule.from_bytes(rule.to_bytes(after), MANIFEST)


def drawn_round(rng: np.random.Generator, devices: int = 5) -> list[ClientUpdate]:
    """Some of the devices, with changes, weights, step lengths and active tensors at random."""
    present = [d for d in range(devices) if rng.random() < 0.6] or [0]
    return [
        update(
            f"device {d}",
            {t.name: rng.standard_normal(t.shape) for t in MANIFEST.dense if t.name == "head" or rng.random() < 0.7},
            num_examples=int(rng.integers(1, 50)),
            step_length=float(rng.uniform(0.1, 2.0)),
        )
        for d in present
    ]


def oracle(
    rounds: Sequence[Sequence[ClientUpdate]], rate: float, beta: float, population: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """The algorithm, tensor by tensor, from its formulas: SCAFFOLD's option II word for word, Adam's first moment."""
    P = {name: value.copy() for name, value in start(Delta(), seed).offset.dense.items()}
    for name in P:
        c: dict[str, NDArray[np.float64]] = {}
        v, t = np.zeros_like(P[name]), 0
        n: dict[str, int] = {}
        for cohort in rounds:
            n |= {u.client: u.num_examples for u in cohort}
            trained = [u for u in cohort if name in u.tensors.dense]
            if not trained:
                continue
            known = c.keys() | {u.client for u in trained}
            everyone = max(population, len(known)) * np.mean([n[k] for k in known])
            mean = sum((n[k] * c[k] for k in c), np.zeros_like(v)) / everyone
            D = np.zeros_like(v)
            for u in trained:
                a, local = u.step_length, P[name] + u.tensors.dense[name]
                own = c.get(u.client, np.zeros_like(v))
                local = local - a * (mean - own)
                c[u.client] = own - mean + (P[name] - local) / a
                D += u.num_examples / sum(x.num_examples for x in cohort) * (local - P[name])
            t += 1
            v = beta * v + (1 - beta) * D
            P[name] = P[name] + rate * v / (1 - beta**t)
    return P


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.6, 0.9]), st.sampled_from([1, 5, 20]))
def test_it_follows_the_formulas_under_any_participation(seed: int, beta: float, population: int) -> None:
    rng = np.random.default_rng(seed)
    rounds = [drawn_round(rng) for _ in range(6)]
    rule = Delta(optimizer=MovingAverage(learning_rate=0.5, beta=beta), controls=ControlVariates(population=population))
    state = start(rule, seed)
    for cohort in rounds:
        state = merged(rule, state, cohort)
    for name, expected in oracle(rounds, 0.5, beta, population, seed).items():
        np.testing.assert_allclose(state.offset.dense[name], expected, rtol=1e-9, atol=1e-10)


def test_without_momentum_and_controls_it_is_the_delta_rule_to_the_bit() -> None:
    rng, plain = np.random.default_rng(0), Delta()
    rule = Delta(optimizer=MovingAverage(beta=0.0))
    one, other = start(rule), start(plain)
    for _ in range(4):
        cohort = drawn_round(rng)
        one, other = merged(rule, one, cohort), merged(plain, other, cohort)
    assert one.offset.to_bytes() == other.offset.to_bytes()


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_the_order_of_arrival_changes_no_bit(seed: int) -> None:
    rng, shuffled = np.random.default_rng(seed), random.Random(seed)
    one = other = start(CONTROLLED)
    for _ in range(4):
        cohort = drawn_round(rng)
        one = merged(CONTROLLED, one, cohort)
        other = merged(CONTROLLED, other, shuffled.sample(cohort, len(cohort)))
    assert CONTROLLED.to_bytes(one) == CONTROLLED.to_bytes(other)


def test_clients_that_change_nothing_leave_the_model_as_it_is() -> None:
    state = start(CONTROLLED)
    before = state.offset.to_bytes()
    for _ in range(10):
        state = merged(CONTROLLED, state, [update(f"device {d}", zeros()) for d in range(3)])
    assert state.offset.to_bytes() == before


def test_what_was_learnt_of_devices_is_forgotten_once_they_change_nothing() -> None:
    """A round of no-op devices after others: their controls become zero, and without momentum the model rests."""
    rule, rng = Delta(controls=ControlVariates()), np.random.default_rng(1)
    state = merged(rule, start(rule), [update(f"device {d}", normal(rng)) for d in range(3)])
    rests = [update(f"device {d}", zeros()) for d in range(3)]
    state = merged(rule, state, rests)
    before = state.offset.to_bytes()
    assert merged(rule, state, rests).offset.to_bytes() == before


def test_a_device_split_in_two_that_come_together_counts_as_before() -> None:
    rng = np.random.default_rng(2)
    whole = halved = start(CONTROLLED)
    for _ in range(4):
        changes = [normal(rng), normal(rng)]
        others = [update("other", changes[1], num_examples=30)] if rng.random() < 0.5 else []
        halves = [update("left", changes[0], num_examples=7), update("right", changes[0], num_examples=13)]
        whole = merged(CONTROLLED, whole, [update("whole", changes[0], num_examples=20), *others])
        halved = merged(CONTROLLED, halved, [*halves, *others])
    for name in NAMES:
        np.testing.assert_allclose(halved.offset.dense[name], whole.offset.dense[name], rtol=1e-12)


def test_where_all_devices_take_part_the_controls_cancel() -> None:
    rng, plain = np.random.default_rng(3), Delta()
    rule = Delta(controls=ControlVariates())
    one, other = start(rule), start(plain)
    for _ in range(4):
        cohort = [update(f"device {d}", normal(rng), num_examples=1 + 9 * d, step_length=0.3) for d in range(4)]
        one, other = merged(rule, one, cohort), merged(plain, other, cohort)
    for name in NAMES:
        np.testing.assert_allclose(one.offset.dense[name], other.offset.dense[name], rtol=1e-12)


def final_error(rule: Delta, rounds: int = 150) -> float:
    """Distance from the devices' common optimum after rounds of two out of eight, each with an optimum of its own."""
    rng = np.random.default_rng(4)
    optima = rng.standard_normal((8, 4))
    state = rule.start(MANIFEST, GlobalState.zeros(MANIFEST), 0)
    for _ in range(rounds):
        at = state.offset.dense["prefix"]
        cohort = rng.choice(8, 2, replace=False)
        state = merged(
            rule, state, [update(str(d), {"prefix": 0.2 * (optima[d] - at)}, step_length=0.2) for d in cohort]
        )
    return float(np.linalg.norm(state.offset.dense["prefix"] - optima.mean(axis=0)))


@pytest.mark.parametrize("optimizer", [None, MovingAverage(beta=0.5)], ids=["plain", "momentum"])
def test_controls_take_away_what_the_draw_of_the_cohort_adds(optimizer: MovingAverage | None) -> None:
    """Devices that disagree, a quarter of them a round: without controls the model wanders about the optimum."""
    assert final_error(Delta(optimizer=optimizer)) > 0.1
    assert final_error(Delta(optimizer=optimizer, controls=ControlVariates(population=8))) < 1e-5


def test_what_no_device_trained_rests() -> None:
    rng = np.random.default_rng(5)
    before = merged(CONTROLLED, start(CONTROLLED), [update("a", normal(rng)), update("b", normal(rng))])
    after = merged(CONTROLLED, before, [update("a", {"head": rng.standard_normal((2, 3))})])
    np.testing.assert_array_equal(after.offset.dense["prefix"], before.offset.dense["prefix"])
    np.testing.assert_array_equal(after.memory.momentum.dense["prefix"], before.memory.momentum.dense["prefix"])
    assert after.memory.counts == {"head": 2, "prefix": 1}
    devices = {control: set(found.gradients) for control, found in after.controls.devices.items()}
    assert list(devices.values()) == [{"head", "prefix"}] * 2
    assert not np.array_equal(after.offset.dense["head"], before.offset.dense["head"])


def test_a_device_that_took_no_step_has_no_gradient_to_remember() -> None:
    state = merged(CONTROLLED, start(CONTROLLED), [update("a", zeros(), step_length=0.0)])
    assert not state.controls.devices


def test_the_server_s_step_acts_on_the_corrections_too() -> None:
    rng, rule = np.random.default_rng(6), Delta(controls=ControlVariates())
    state = merged(rule, start(rule), [update("a", normal(rng)), update("b", normal(rng))])
    cohort = [update("a", normal(rng))]
    whole, half = merged(rule, state, cohort), merged(rule, state, cohort, step=0.5)
    for name, value in state.offset.dense.items():
        np.testing.assert_allclose(half.offset.dense[name] - value, 0.5 * (whole.offset.dense[name] - value))


def test_a_device_costs_eight_bytes_a_value() -> None:
    values, controls = 2 * 3 + 4, CONTROLLED.controls
    assert controls is not None
    state, sizes = start(CONTROLLED), []
    for d in range(3):
        state = merged(CONTROLLED, state, [update(str(d), normal(np.random.default_rng(d)))])
        sizes.append(sum(tensor.nbytes for tensor in state.controls.tensors().values()))
    assert sizes == [8 * (values + 1) * devices for devices in (1, 2, 3)]


@pytest.mark.parametrize("stateful", [{"controls": ControlVariates()}, {"optimizer": MovingAverage()}])
def test_low_rank_modules_are_refused_with_the_reason(stateful: dict[str, Any]) -> None:
    manifest = manifest_of({"one": (9, 7)}, 4)
    with pytest.raises(MergeError, match=r"'one' is a low-rank module.*use Momentum|'one' is .*Momentum by PerKind"):
        Delta(**stateful).start(manifest, GlobalState.zeros(manifest), 0)


def test_an_update_of_an_earlier_version_is_refused() -> None:
    assert Requirement.ONE_VERSION in CONTROLLED.requires
    with pytest.raises(MergeError, match="live version alone"):
        merged(CONTROLLED, start(CONTROLLED), [update("a", zeros(), staleness=1)])


def stored(**gradients: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return dict(Controls({"ab" * 32: Control(weight=2.0, gradients=gradients)}).tensors())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (stored(other=np.zeros(4)), "'other' is no dense tensor"),
        (stored(prefix=np.zeros(5)), "'prefix' is no dense tensor"),
        ({f"{'ab' * 32}/gradient/prefix": np.zeros(4)}, "no device with a weight"),
        ({**stored(), f"{'ab' * 32}/more": np.zeros(4)}, "no device with a weight"),
    ],
)
def test_what_are_no_controls_of_this_run_is_refused(wrong: Tensors, told: str) -> None:
    with pytest.raises(MergeError, match=told):
        Controls.of_tensors(wrong, MANIFEST)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ControlVariates(population=0), "population must be at least 1"),
        (lambda: MovingAverage(beta=1.0), r"beta must be in \[0, 1\)"),
        (lambda: MovingAverage(learning_rate=0.0), "learning_rate must be positive"),
        (lambda: Delta(optimizer=Momentum(), controls=ControlVariates()), "controls go with a moving average"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(MergeError, match=message):
        make()


def zeros() -> Tensors:
    return {tensor.name: np.zeros(tensor.shape) for tensor in MANIFEST.dense}


def normal(rng: np.random.Generator) -> Tensors:
    return {tensor.name: rng.standard_normal(tensor.shape) for tensor in MANIFEST.dense}
