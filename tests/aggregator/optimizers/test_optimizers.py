"""Server optimizers against their recursions, written out dense."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.merge import Factors, GlobalState, Increment, MergeError
from aggregator.merge.tensor_file import TensorFile, view_tensors
from aggregator.optimizers import Adaptive, Memory, Momentum, Optimizer, PerKind, SecondMoment, Sgd
from protocol.manifest import Manifest
from tests.aggregator.merge.strategies.bench import manifest_of

SHAPES = {"one": (9, 7), "two": (5, 12)}
MANIFEST = manifest_of(SHAPES, 4)
DENSE_ONLY = manifest_of({}, 4)
seeds = st.integers(0, 2**32 - 1)


def changes(seed: int, count: int = 4, manifest: Manifest = MANIFEST) -> list[GlobalState]:
    """Merged changes of rank 2, as rounds bring them."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        low_rank = {
            m.name: Factors(rng.standard_normal((m.out_features, 2)), rng.standard_normal((2, m.in_features)))
            for m in manifest.low_rank
        }
        increment = Increment(low_rank=low_rank, dense={"head": rng.standard_normal((2, 3))})
        found.append(GlobalState.zeros(manifest).add(increment))
    return found


def steps(optimizer: Optimizer, given: list[GlobalState], manifest: Manifest = MANIFEST) -> list[GlobalState]:
    """The steps taken; the memory goes through a file every round, as in a run."""
    memory, taken = optimizer.init(manifest), []
    for change in given:
        stored = view_tensors(TensorFile(memory.tensors()).to_bytes())
        step, memory = optimizer.update(change, Memory.of_tensors(stored, manifest))
        taken.append(step)
    return taken


def dense(state: GlobalState) -> dict[str, np.ndarray]:
    return {**{name: module.svd.dense() for name, module in state.low_rank.items()}, **state.dense}


@settings(max_examples=10)
@given(seeds, st.sampled_from([1.0, 0.1]), st.sampled_from([0.0, 0.3]))
def test_sgd_takes_a_decaying_share_of_the_change(seed: int, rate: float, decay: float) -> None:
    given_changes = changes(seed)
    for t, (step, change) in enumerate(
        zip(steps(Sgd(learning_rate=rate, decay=decay), given_changes), given_changes, strict=True)
    ):
        for name, value in dense(change).items():
            np.testing.assert_allclose(dense(step)[name], rate / (1 + decay * t) * value, atol=1e-12)


@settings(max_examples=10)
@given(seeds, st.sampled_from([0.0, 0.5, 0.9]))
def test_momentum_is_the_discounted_sum_of_changes(seed: int, beta: float) -> None:
    given_changes = changes(seed)
    velocity = {name: np.zeros_like(value) for name, value in dense(given_changes[0]).items()}
    taken = steps(Momentum(learning_rate=0.3, beta=beta), given_changes)
    for step, change in zip(taken, given_changes, strict=True):
        for name, value in dense(change).items():
            velocity[name] = beta * velocity[name] + value
            np.testing.assert_allclose(dense(step)[name], 0.3 * velocity[name], atol=1e-12)


@settings(max_examples=10)
@given(seeds, st.sampled_from([1, 3]), st.sampled_from([0.5, 0.9]))
def test_cut_momentum_keeps_its_rank_and_its_certificate(seed: int, rank: int, beta: float) -> None:
    cut, whole = Momentum(beta=beta, rank_max=rank), Momentum(beta=beta)
    short, full = cut.init(MANIFEST), whole.init(MANIFEST)
    for change in changes(seed, 6):
        _, short = cut.update(change, short)
        _, full = whole.update(change, full)
        for name, module in short.momentum.low_rank.items():
            error = np.linalg.norm(module.svd.dense() - full.momentum.low_rank[name].svd.dense())
            assert module.svd.rank <= rank
            assert error <= module.discarded * (1 + 1e-9) + 1e-12
    assert 0 < module.discarded < 20 * error


@pytest.mark.parametrize("rule", SecondMoment)
def test_adaptive_steps_follow_algorithm_2(rule: SecondMoment) -> None:
    optimizer = Adaptive(rule=rule, learning_rate=0.2, beta1=0.8, beta2=0.7, tau=0.01)
    given_changes = changes(1, manifest=DENSE_ONLY)
    first, second = np.zeros((2, 3)), np.full((2, 3), 0.01**2)
    taken = steps(optimizer, given_changes, DENSE_ONLY)
    for step, change in zip(taken, given_changes, strict=True):
        D = change.dense["head"]
        first = 0.8 * first + 0.2 * D
        second = {
            SecondMoment.ADAGRAD: second + D**2,
            SecondMoment.ADAM: 0.7 * second + 0.3 * D**2,
            SecondMoment.YOGI: second - 0.3 * D**2 * np.sign(second - D**2),
        }[rule]
        np.testing.assert_allclose(step.dense["head"], 0.2 * first / (np.sqrt(second) + 0.01), rtol=1e-12)


def test_adaptive_steps_refuse_factors_and_say_what_to_do() -> None:
    optimizer = Adaptive(rule=SecondMoment.YOGI, learning_rate=0.1)
    with pytest.raises(MergeError, match=r"'one' is a low-rank module.*PerKind"):
        optimizer.init(MANIFEST)
    with pytest.raises(MergeError, match="PerKind"):
        optimizer.update(changes(0, 1)[0], optimizer.init(DENSE_ONLY))


def test_two_optimizers_side_by_side_are_each_by_itself() -> None:
    adam = Adaptive(rule=SecondMoment.ADAM, learning_rate=0.1)
    given_changes = changes(3)
    both = steps(PerKind(low_rank=Momentum(), dense=adam), given_changes)
    momentum = steps(Momentum(), given_changes)
    alone = steps(adam, [GlobalState(low_rank={}, dense=change.dense) for change in given_changes], DENSE_ONLY)
    for one, low_rank, other in zip(both, momentum, alone, strict=True):
        for name in SHAPES:
            np.testing.assert_array_equal(dense(one)[name], dense(low_rank)[name])
        np.testing.assert_array_equal(one.dense["head"], other.dense["head"])


@pytest.mark.parametrize(
    "optimizer",
    [
        Momentum(beta=0.9),
        Momentum(beta=0.5, rank_max=3),
        PerKind(low_rank=Momentum(beta=0.9), dense=Adaptive(rule=SecondMoment.ADAM, learning_rate=0.1)),
    ],
    ids=str,
)
def test_what_nobody_trained_rests_and_then_goes_on_where_it_was(optimizer: Optimizer) -> None:
    first, second, third = changes(3, 3)
    absent = GlobalState(low_rank={"two": second.low_rank["two"]}, dense={})
    partial = steps(optimizer, [first, absent, third])
    assert set(dense(partial[1])) == {"two"}
    without = steps(optimizer, [first, third])
    for name in ("one", "head"):
        np.testing.assert_allclose(dense(partial[2])[name], dense(without[1])[name], atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    [
        Sgd(decay=0.1),
        Momentum(),
        PerKind(low_rank=Momentum(rank_max=2), dense=Adaptive(rule=SecondMoment.ADAM, learning_rate=0.1)),
    ],
    ids=["sgd", "momentum", "per kind"],
)
def test_nothing_learnt_from_the_start_is_no_step(optimizer: Optimizer) -> None:
    for step in steps(optimizer, [GlobalState.zeros(MANIFEST)] * 3):
        assert not any(value.any() for value in dense(step).values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sgd(learning_rate=0.0), "learning_rate must be positive"),
        (lambda: Sgd(learning_rate=float("nan")), "learning_rate must be positive"),
        (lambda: Sgd(decay=-0.1), "decay must be 0 or more"),
        (lambda: Sgd(decay=float("inf")), "decay must be 0 or more"),
        (lambda: Momentum(beta=1.0), r"beta must be in \[0, 1\)"),
        (lambda: Momentum(rank_max=0), "rank_max must be at least 1"),
        (lambda: Adaptive(rule=SecondMoment.ADAM, learning_rate=0.1, tau=0.0), "tau must be positive"),
        (lambda: Adaptive(rule=SecondMoment.ADAM, learning_rate=0.1, beta2=1.0), r"beta2 must be in \[0, 1\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(MergeError, match=message):
        make()
