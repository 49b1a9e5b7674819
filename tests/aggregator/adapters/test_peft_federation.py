"""Federating PEFT adapters of mixed ranks and α, against the dense sum in float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregator.adapters import PeftConfig, PeftError, adapter_of_tensors
from aggregator.adapters.peft_federation import AdapterState, AdapterUpdate
from aggregator.merge import MergeError

SHAPES = {"layer.q": (7, 5), "layer.v": (4, 9), "table": (6, 11)}
PREFIX = "base_model.model."
HEAD = f"{PREFIX}head.weight"

Tensors = dict[str, NDArray[np.float32]]
Dense = dict[str, NDArray[np.float64]]
seeds = st.integers(0, 2**32 - 1)
configs = st.builds(
    lambda r, alpha, rslora, pattern: config_of(r=r, lora_alpha=alpha, use_rslora=rslora, rank_pattern=pattern),
    st.integers(1, 10), st.floats(0.5, 40), st.booleans(), st.sampled_from([{}, {"q": 1}, {"table": 3}]),
)  # fmt: skip


def config_of(r: int, lora_alpha: float, **rest: Any) -> PeftConfig:
    return PeftConfig(source="client", r=r, lora_alpha=lora_alpha, modules_to_save=("head",), **rest)


SERVER = config_of(r=3, lora_alpha=6)


def names(module: str) -> tuple[str, str]:
    if module == "table":
        return f"{PREFIX}{module}.lora_embedding_B", f"{PREFIX}{module}.lora_embedding_A"
    return f"{PREFIX}{module}.lora_B.weight", f"{PREFIX}{module}.lora_A.weight"


def random_tensors(config: PeftConfig, rng: np.random.Generator) -> Tensors:
    tensors = {HEAD: rng.standard_normal((2, 3)).astype(np.float32)}
    for module, (m, n) in SHAPES.items():
        B, A = names(module)
        tensors[B] = rng.standard_normal((m, config.rank(module))).astype(np.float32)
        tensors[A] = rng.standard_normal((config.rank(module), n)).astype(np.float32)
    return tensors


def products(config: PeftConfig, tensors: Tensors) -> Dense:
    """What the tensors mean, by the definition: ``s·B·A``, and a head as it is."""
    found: Dense = {"head": tensors[HEAD].astype(np.float64)} if HEAD in tensors else {}
    for module in SHAPES:
        if (B := names(module)[0]) in tensors:
            A = tensors[names(module)[1]]
            alpha, rank = config.lora_alpha, A.shape[0]
            s = alpha / np.sqrt(rank) if config.use_rslora else alpha / rank
            found[module] = s * (tensors[B].astype(np.float64) @ A.astype(np.float64))
    return found


def state_of(tensors: Tensors, config: PeftConfig = SERVER) -> AdapterState:
    return AdapterState.of(adapter_of_tensors(config, tensors))


def held(state: AdapterState) -> Dense:
    return {name: module.svd.dense() for name, module in state.modules.items()} | {"head": state.dense["head.weight"]}


def trained(tensors: Tensors, rng: np.random.Generator, missing: Sequence[str] = ()) -> Tensors:
    gone = {name for module in missing for name in ((HEAD,) if module == "head" else names(module))}
    return {
        name: value + 0.1 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in tensors.items()
        if name not in gone
    }


clients = st.tuples(configs, st.floats(0.5, 100), st.sets(st.sampled_from(["layer.q", "table", "head"])).map(sorted))


@settings(max_examples=40)
@given(seeds, st.lists(clients, min_size=1, max_size=4))
def test_a_round_adds_the_weighted_dense_deltas(seed: int, cohort: list[tuple[PeftConfig, float, list[str]]]) -> None:
    rng = np.random.default_rng(seed)
    state = state_of(random_tensors(SERVER, rng))
    expected, updates = held(state), []
    for config, weight, missing in cohort:
        sent, handed = state.handout(config, seed=1)
        back = trained(sent, rng, missing)
        updates.append(AdapterUpdate(weight=weight, handed=handed, returned=adapter_of_tensors(config, back)))
        before, after = products(config, sent), products(config, back)
        for name, value in after.items():
            share = weight / sum(w for _, w, _ in cohort)
            expected[name] = expected[name] + share * (value - before[name])
    got = held(state.add(updates))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-12 * (1 + np.linalg.norm(value)))


@settings(max_examples=40)
@given(seeds, configs)
def test_everybody_is_handed_the_best_adapter_of_their_own_rank_and_scaling(seed: int, config: PeftConfig) -> None:
    state = state_of(random_tensors(SERVER, np.random.default_rng(seed)))
    for ready in (state, state.prepared(10)):
        sent, _ = ready.handout(config, seed=1)
        got = products(config, sent)
        for module, matrix in held(state).items():
            if module in SHAPES:
                U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
                rank = config.rank(module)
                best = (U[:, :rank] * S[:rank]) @ Vt[:rank]
                np.testing.assert_allclose(got[module], best, rtol=0, atol=1e-6 * np.linalg.norm(matrix))
                A = sent[names(module)[1]]
                assert A.shape[0] == rank
                assert A.any(axis=1).all(), "a slot with A = 0 and B = 0 never learns"


def test_clients_that_learn_nothing_leave_the_state_as_it_is_to_the_bit() -> None:
    state = state_of(random_tensors(config_of(r=4, lora_alpha=8), np.random.default_rng(0)), config_of(4, 8))
    start = held(state)
    for round in range(10):
        updates = []
        for rank in (1, 2, 4, 8):
            config = config_of(rank, 16)
            sent, handed = state.handout(config, seed=round)
            updates.append(AdapterUpdate(weight=1, handed=handed, returned=adapter_of_tensors(config, sent)))
        state = state.add(updates)
    for name, value in held(state).items():
        np.testing.assert_array_equal(value, start[name])


@pytest.mark.parametrize(
    ("weight", "changes", "reason"),
    [
        (0.0, {}, "expected a positive weight"),
        (float("nan"), {}, "expected a positive weight"),
        (1.0, {names("layer.q")[0]: (7, 3), names("layer.q")[1]: (3, 5)}, "'layer.q' was not handed out"),
        (1.0, {names("layer.q")[0]: (8, 2)}, "'layer.q' was not handed out"),
        (1.0, {names("other")[0]: (7, 2), names("other")[1]: (2, 5)}, "'other' was not handed out"),
        (1.0, {HEAD: (3, 3)}, "'head.weight' was not handed out"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(weight: float, changes: dict[str, Any], reason: str) -> None:
    state = state_of(random_tensors(SERVER, np.random.default_rng(0)))
    config = config_of(2, 4)
    sent, handed = state.handout(config, seed=0)
    back = sent | {name: np.ones(shape, np.float32) for name, shape in changes.items()}
    lying = config_of(2, 4, rank_pattern={"q": back[names("layer.q")[1]].shape[0]})
    update = AdapterUpdate(weight=weight, handed=handed, returned=adapter_of_tensors(lying, back))
    with pytest.raises(MergeError, match=reason):
        state.add([update])


def test_nothing_is_no_round_and_no_start() -> None:
    state = state_of(random_tensors(SERVER, np.random.default_rng(0)))
    with pytest.raises(MergeError, match="nothing to merge"):
        state.add([])
    with pytest.raises(MergeError, match="got none"):
        state_of({HEAD: np.ones((2, 3), np.float32)})
    with pytest.raises(PeftError, match="got none"):
        state_of({})
