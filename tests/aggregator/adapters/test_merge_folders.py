"""Merging PEFT folders: the weighted sum of products, whatever ranks, scales and gauges they were saved with."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from aggregator.adapters import PeftAdapter, PeftModule, merge_adapters, merge_folders, read_peft_folder
from aggregator.merge import MergeError

SHAPES = {"layer.q": (7, 5), "layer.v": (4, 9), "layer.out": (6, 6)}

seeds = st.integers(0, 2**32 - 1)
ranks = st.integers(1, 10)
names = st.sets(st.sampled_from(sorted(SHAPES)), min_size=1).map(sorted)
cohorts = st.lists(st.tuples(ranks, names, st.integers(1, 9)), min_size=1, max_size=4)


def adapter_of(seed: int, rank: int, modules: Sequence[str] = tuple(SHAPES)) -> PeftAdapter:
    rng = np.random.default_rng(seed)
    return PeftAdapter(
        modules={
            name: PeftModule(rng.standard_normal((SHAPES[name][0], rank)), rng.standard_normal((rank, SHAPES[name][1])))
            for name in modules
        },
        dense={"head.weight": rng.standard_normal((2, 3)).astype(np.float32)},
        modules_to_save=("head",),
        base_model="base",
    )


def oracle(adapters: Sequence[PeftAdapter], weights: Sequence[float]) -> dict[str, NDArray[np.float64]]:
    sums: dict[str, NDArray[np.float64]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, module in adapter.modules.items():
            sums[name] = sums.get(name, np.zeros(SHAPES[name])) + weight / sum(weights) * (module.B @ module.A)
    return sums


def assert_merged(merged: PeftAdapter, expected: dict[str, NDArray[np.float64]], rank: int | None) -> None:
    assert merged.modules.keys() == expected.keys()
    for name, matrix in expected.items():
        U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
        best = (U[:, :rank] * S[:rank]) @ Vt[:rank]
        np.testing.assert_allclose(
            merged.modules[name].factors().dense(), best, rtol=0, atol=3e-6 * (1 + np.linalg.norm(matrix))
        )


@settings(max_examples=40)
@given(seeds, cohorts)
def test_the_full_merge_is_the_weighted_sum_of_products(seed: int, drawn: list[tuple[int, list[str], int]]) -> None:
    adapters = [adapter_of(seed + i, rank, modules) for i, (rank, modules, _) in enumerate(drawn)]
    weights = [float(weight) for *_, weight in drawn]
    merged, report = merge_adapters(adapters, weights, None)
    assert_merged(merged, oracle(adapters, weights), None)
    assert all(module.handout_error[module.rank] == 0.0 for module in report.modules)
    head = sum(w * a.dense["head.weight"].astype(float) for w, a in zip(weights, adapters, strict=True)) / sum(weights)
    np.testing.assert_allclose(merged.dense["head.weight"], head, rtol=1e-5, atol=1e-6)


@settings(max_examples=40)
@given(seeds, st.integers(1, 12))
def test_a_merge_of_lower_rank_is_the_best_of_that_rank_and_says_what_it_lost(seed: int, rank: int) -> None:
    adapters = [adapter_of(seed, 2), adapter_of(seed + 1, 3)]
    merged, report = merge_adapters(adapters, None, rank)
    expected = oracle(adapters, [1, 1])
    assert {module.rank for module in merged.modules.values()} == {rank}
    # A truncation is unique only where the spectrum has a gap, which random matrices have.
    assert_merged(merged, expected, rank)
    for module in report.modules:
        S = np.linalg.svd(expected[module.name], compute_uv=False)
        lost = np.linalg.norm(S[rank:]) / np.linalg.norm(S)
        assert module.handout_error[rank] == pytest.approx(lost, abs=1e-12)


@settings(max_examples=40)
@given(seeds, ranks)
def test_gauge_order_copies_and_split_weights_do_not_matter(seed: int, rank: int) -> None:
    one, other = adapter_of(seed, rank), adapter_of(seed + 1, 3)
    G = np.random.default_rng(seed).standard_normal((rank, rank)) + 4 * np.eye(rank)
    turned = replace(
        one, modules={name: PeftModule(m.B @ G, np.linalg.solve(G, m.A)) for name, m in one.modules.items()}
    )
    expected = oracle([one, other], [3, 2])
    for adapters, weights in [
        ([one, other], [3.0, 2.0]),
        ([turned, other], [3.0, 2.0]),
        ([other, one], [2.0, 3.0]),
        ([one, one, other], [1.0, 2.0, 2.0]),
    ]:
        assert_merged(merge_adapters(adapters, weights, None)[0], expected, None)
    assert_merged(merge_adapters([one, one], None, None)[0], oracle([one], [1]), None)


def save(
    folder: Path, rng: np.random.Generator, rank: int, alpha: float, rslora: bool
) -> dict[str, NDArray[np.float64]]:
    """Writes a folder as PEFT does, and returns the products it stands for."""
    folder.mkdir()
    ranks = {name: 1 if name == "layer.v" else rank for name in SHAPES}
    tensors, products = {}, {}
    for name, (m, n) in SHAPES.items():
        B = rng.standard_normal((m, ranks[name])).astype(np.float32)
        A = rng.standard_normal((ranks[name], n)).astype(np.float32)
        tensors |= {f"base_model.model.{name}.lora_B.weight": B, f"base_model.model.{name}.lora_A.weight": A}
        scaling = alpha / (math.sqrt(ranks[name]) if rslora else ranks[name])
        products[name] = scaling * (B.astype(float) @ A.astype(float))
    config = {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rslora, "rank_pattern": {"v": 1},
        "base_model_name_or_path": "base", "task_type": None,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return products


@pytest.mark.parametrize("rank", [None, 2])
def test_folders_of_mixed_rank_alpha_and_rslora_merge_as_the_dense_oracle(tmp_path: Path, rank: int | None) -> None:
    rng = np.random.default_rng(0)
    settings = [(2, 4.0, False), (4, 16.0, True), (8, 16.0, False)]
    parts = [save(tmp_path / f"in{i}", rng, *setting) for i, setting in enumerate(settings)]
    weights = [1.0, 2.0, 5.0]
    merge_folders([tmp_path / f"in{i}" for i in range(3)], weights, rank, tmp_path / "out")
    expected = {
        name: sum((w / 8 * part[name] for w, part in zip(weights, parts, strict=True)), np.zeros(shape))
        for name, shape in SHAPES.items()
    }
    assert_merged(read_peft_folder(tmp_path / "out"), expected, rank)


def test_modules_that_cancel_stay_loadable() -> None:
    one = adapter_of(0, 2)
    other = replace(one, modules={name: PeftModule(-m.B, m.A) for name, m in one.modules.items()})
    merged, _ = merge_adapters([one, other], None, None)
    for module in merged.modules.values():
        assert module.rank == 1
        assert not module.B.any()
        assert module.A.any()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "expected 2 weights"),
        ([1.0, 0.0], "positive and finite"),
        ([1.0, -1.0], "positive and finite"),
        ([1.0, float("nan")], "positive and finite"),
    ],
)
def test_weights_that_are_no_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(MergeError, match=message):
        merge_adapters([adapter_of(0, 1), adapter_of(1, 2)], weights, None)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(adapter_of(1, 2), base_model="another"), r"differ in base_model \(one: base, two: another\)"),
        (replace(adapter_of(1, 2), task_type="SEQ_CLS"), "differ in task_type"),
        (
            replace(adapter_of(1, 2), dense={}, modules_to_save=()),
            r"'head.weight' is uneven \(one: \(2, 3\), two: None\)",
        ),
        (replace(adapter_of(1, 2), dense={"head.weight": np.ones((3, 2), np.float32)}), "'head.weight' is uneven"),
        (replace(adapter_of(1, 2), modules={"layer.q": PeftModule(np.ones((5, 1)), np.ones((1, 7)))}), "'layer.q'"),
    ],
)
def test_adapters_that_do_not_belong_together_are_refused(other: PeftAdapter, message: str) -> None:
    pair = [replace(adapter_of(0, 1), source="one"), replace(other, source="two")]
    with pytest.raises(MergeError, match=message):
        merge_adapters(pair, None, None)
    with pytest.raises(MergeError):
        merge_adapters([replace(adapter, source="both") for adapter in pair], None, None)


def test_nothing_and_rank_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="at least one folder"):
        merge_folders([], None, None, tmp_path / "out")
    with pytest.raises(MergeError, match="at least rank 1"):
        merge_adapters([adapter_of(0, 1)], None, 0)
