"""PEFT folders: what is read, what is refused, and that PEFT reads what is written.

The tests read folders that PEFT itself wrote, around a tiny random model.
"""

import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from aggregator.adapters import (
    PeftAdapter,
    PeftConfig,
    PeftError,
    PeftModule,
    merge_folders,
    read_peft_folder,
    write_peft_folder,
)
from aggregator.errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENS = torch.arange(11).reshape(1, 11)


class Net(nn.Module):
    """An embedding, linear layers of which one's name ends like another's, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.fc = nn.Linear(6, 8)
        self.layer = nn.ModuleDict({"fc": nn.Linear(8, 8), "out": nn.Linear(8, 5)})
        self.head = nn.Linear(5, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.layer["fc"](torch.tanh(self.fc(self.table(tokens)))))
        return self.head(torch.tanh(self.layer["out"](hidden)))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def trained(net: nn.Module, **config: Any) -> PeftModel:
    """A PEFT model whose every factor is random, as after training."""
    model = get_peft_model(net, LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_()
    return model.eval()


def deltas(model: PeftModel) -> dict[str, NDArray[np.float64]]:
    """What PEFT itself says each module adds to its weight, computed in float64."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in copy.deepcopy(model).double().named_modules()
        if hasattr(module, "get_delta_weight")
    }


def saved(folder: Path, **config: Any) -> PeftModel:
    model = trained(Net(), **({"r": 4, "lora_alpha": 12, "target_modules": ["fc"]} | config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_peft_wrote_means_what_peft_says_it_means(tmp_path: Path, use_rslora: bool) -> None:
    model = saved(
        tmp_path,
        use_rslora=use_rslora,
        target_modules=["table", "fc", "out"],
        rank_pattern={"layer.fc": 3, "fc": 2},
        alpha_pattern={r"layer\.\w+": 5},
        modules_to_save=["head"],
    )
    adapter, expected = read_peft_folder(tmp_path), deltas(model)
    assert adapter.modules.keys() == expected.keys() == {"table", "fc", "layer.fc", "layer.out"}
    assert {name: module.rank for name, module in adapter.modules.items()} == {
        "table": 4, "fc": 2, "layer.fc": 3, "layer.out": 4,
    }  # fmt: skip
    for name, module in adapter.modules.items():
        product = module.factors().dense()
        assert module.embedding == (name == "table")
        np.testing.assert_allclose(product.T if module.embedding else product, expected[name], rtol=1e-5, atol=1e-6)
    head = model.base_model.model.head.modules_to_save["default"]
    np.testing.assert_array_equal(adapter.dense["head.weight"], head.weight.detach().numpy())
    np.testing.assert_array_equal(adapter.dense["head.bias"], head.bias.detach().numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_float_format_is_read_to_its_last_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = trained(Net(), r=2, lora_alpha=2, target_modules=["fc"]).to(dtype)
    model.save_pretrained(tmp_path)
    layer = model.base_model.model.fc
    A = read_peft_folder(tmp_path).modules["fc"].A
    np.testing.assert_array_equal(A.astype(np.float32), layer.lora_A["default"].weight.detach().float().numpy())


def test_a_transposed_base_is_read_with_the_same_factor_shapes(tmp_path: Path) -> None:
    model = trained(
        nn.Sequential(Conv1D(5, 8), nn.Tanh()), r=2, lora_alpha=4, target_modules=["0"], fan_in_fan_out=True
    )
    model.save_pretrained(tmp_path)
    adapter = read_peft_folder(tmp_path)
    assert adapter.fan_in_fan_out
    np.testing.assert_allclose(adapter.modules["0"].factors().dense().T, deltas(model)["0"], rtol=1e-5, atol=1e-6)


PATTERNS = ["q", "^q", "a.q", r"\d+.q", "layers.1.*", "^layers.0.q", "x|q", ".*"]
PATHS = ["q", "a.q", "layers.0.q", "layers.10.a.q", "layers.1.xq", "b"]


@given(st.lists(st.sampled_from(PATTERNS), unique=True), st.sampled_from(PATHS))
def test_patterns_match_as_peft_matches_them(patterns: list[str], path: str) -> None:
    table = {pattern: index + 1 for index, pattern in enumerate(patterns)}
    expected = {value for pattern, value in table.items() if get_pattern_key([pattern], path) == pattern} or {99}
    config = PeftConfig(source="-", r=99, lora_alpha=99, rank_pattern=table, alpha_pattern=table)
    assert config.ranks(path) == expected
    if len(expected) == 1:
        assert config.rank(path) == min(expected)
        assert config.scaling(path, 1) == min(expected)
    else:
        with pytest.raises(PeftError, match=r"rank_pattern contradict"):
            config.rank(path)
        with pytest.raises(PeftError, match=r"alpha_pattern contradict"):
            config.scaling(path, 1)


def test_alpha_patterns_whose_order_decided_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, alpha_pattern={"layer.fc": 3, "fc": 2})
    with pytest.raises(PeftError, match=r"'layer.fc': patterns of alpha_pattern contradict"):
        read_peft_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora_alpha": None}, "lora_alpha: expected a positive number"),
        ({"lora_alpha": 0}, "lora_alpha: expected a positive number"),
        ({"r": None}, "r: expected a positive whole number"),
        ({"r": 5}, "the config says rank 5"),
        ({"peft_type": "LOHA"}, "expected peft_type 'LORA', got 'LOHA'"),
        ({"use_dora": True}, "use_dora=True: DoRA rescales"),
        ({"lora_bias": True}, "lora_bias=True: biases inside"),
        ({"bias": "all"}, "bias='all': trained biases"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"trainable_token_indices": [1]}, "single trained tokens"),
        ({"alora_invocation_tokens": [1]}, "invocation tokens"),
        ({"use_qalora": True}, "QALoRA"),
        ({"setting_of_tomorrow": 3}, "setting_of_tomorrow=3: a setting that this reader does not know"),
        ({"rank_pattern": {"fc": -1}}, "rank_pattern: expected a map to positive whole numbers"),
        ({"rank_pattern": {"fc": 1.5}}, "rank_pattern: expected a map to positive whole numbers"),
        ({"alpha_pattern": {"fc": 0}}, "alpha_pattern: expected a map to positive numbers"),
        ({"rank_pattern": {"(": 1}}, "'(' is not a regular expression"),
        ({"modules_to_save": "head"}, "modules_to_save: expected a list"),
    ],
)
def test_settings_that_change_the_meaning_are_refused_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text()) | changes
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(PeftError, match=re.escape(reason)):
        read_peft_folder(tmp_path)


def test_a_missing_alpha_is_an_error_and_never_a_default(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    del config["lora_alpha"]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(PeftError, match="lora_alpha: expected a positive number, got 'nothing'"):
        read_peft_folder(tmp_path)


FC = "base_model.model.fc"


@pytest.mark.parametrize(
    ("added", "removed", "reason"),
    [
        ({f"{FC}.lora_magnitude_vector": (8,)}, None, "neither a LoRA factor nor of modules_to_save"),
        ({f"{FC}.lora_B.bias": (8,)}, None, "neither a LoRA factor nor of modules_to_save"),
        ({f"{FC}.bias": (8,)}, None, "neither a LoRA factor nor of modules_to_save"),
        ({}, f"{FC}.lora_A.weight", "module 'fc' has only ['lora_B']"),
        ({f"{FC}.lora_A.weight": (4, 6, 3, 3)}, None, "convolutions are not supported"),
    ],
)
def test_tensors_that_are_not_understood_are_refused(
    tmp_path: Path, added: dict[str, tuple[int, ...]], removed: str | None, reason: str
) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS) | {name: np.ones(shape, np.float32) for name, shape in added.items()}
    save_file({name: value for name, value in tensors.items() if name != removed}, tmp_path / WEIGHTS)
    with pytest.raises(PeftError, match=re.escape(reason)):
        read_peft_folder(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors[f"{FC}.lora_A.weight"][0, 0] = value
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(PeftError, match=r"'base_model.model.fc.lora_A.weight' holds NaN"):
        read_peft_folder(tmp_path)


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PeftError, match=r"no readable adapter_config.json"):
        read_peft_folder(tmp_path)
    saved(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"not a tensor file")
    with pytest.raises(PeftError, match="is not a safetensors file"):
        read_peft_folder(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(PeftError, match=r"adapter_model.bin is a pickle"):
        read_peft_folder(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(PeftError, match="is not JSON"):
        read_peft_folder(tmp_path)


def adapter_of(rng: np.random.Generator, ranks: dict[str, int], **rest: Any) -> PeftAdapter:
    shapes = {"table": (6, 11), "fc": (8, 6), "layer.fc": (8, 8), "layer.out": (5, 8)}
    modules = {
        name: PeftModule(
            rng.standard_normal((shapes[name][0], rank)).astype(np.float32),
            rng.standard_normal((rank, shapes[name][1])).astype(np.float32),
            name == "table",
        )
        for name, rank in ranks.items()
    }
    return PeftAdapter(**({"modules": modules, "dense": {}} | rest))


def test_peft_loads_what_was_written_module_by_module(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = {"head.weight": rng.standard_normal((3, 5), np.float32), "head.bias": np.ones(3, np.float32)}
    adapter = adapter_of(
        rng, {"table": 2, "fc": 5, "layer.out": 3}, dense=dense, modules_to_save=("head",), base_model="some/base"
    )
    write_peft_folder(tmp_path / "out", adapter)
    model = PeftModel.from_pretrained(Net(), tmp_path / "out")
    assert deltas(model).keys() == {"table", "fc", "layer.out"}, "a module that merely ends like 'fc' was tuned"
    for name, delta in deltas(model).items():
        product = adapter.modules[name].factors().dense()
        np.testing.assert_allclose(delta, product.T if name == "table" else product, rtol=1e-5, atol=1e-5)
    head = model.base_model.model.head.modules_to_save["default"]
    np.testing.assert_array_equal(head.weight.detach().numpy(), dense["head.weight"])
    assert all(math.isfinite(value) for value in model(TOKENS).flatten().tolist())


@pytest.mark.parametrize("rank", [None, 3])
def test_peft_computes_with_a_merged_folder_what_the_dense_merge_computes(tmp_path: Path, rank: int | None) -> None:
    shared: dict[str, Any] = {"target_modules": ["table", "fc", "out"], "modules_to_save": ["head"]}
    settings = [{"r": 2, "lora_alpha": 4}, {"r": 4, "lora_alpha": 16, "use_rslora": True}, {"r": 8, "lora_alpha": 2}]
    models = [saved(tmp_path / str(i), **shared, **setting) for i, setting in enumerate(settings)]
    shares = [0.5, 0.25, 0.25]
    merge_folders([tmp_path / str(i) for i in range(3)], [2.0, 1.0, 1.0], rank, tmp_path / "out")

    dense = Net().double().eval()
    merged = PeftModel.from_pretrained(copy.deepcopy(dense), tmp_path / "out").eval()
    heads = [model.base_model.model.head.modules_to_save["default"] for model in models]
    with torch.no_grad():
        for name in deltas(models[0]):
            total = sum(share * deltas(model)[name] for share, model in zip(shares, models, strict=True))
            U, S, Vt = np.linalg.svd(total, full_matrices=False)
            dense.get_submodule(name).weight += torch.from_numpy((U[:, :rank] * S[:rank]) @ Vt[:rank])
        dense.head.weight.copy_(sum(share * head.weight for share, head in zip(shares, heads, strict=True)))
        dense.head.bias.copy_(sum(share * head.bias for share, head in zip(shares, heads, strict=True)))
        torch.testing.assert_close(merged(TOKENS).double(), dense(TOKENS), rtol=1e-5, atol=1e-5)


def test_what_was_written_reads_back_bit_for_bit(tmp_path: Path) -> None:
    adapter = adapter_of(np.random.default_rng(1), {"table": 1, "fc": 12}, task_type="FEATURE_EXTRACTION")
    write_peft_folder(tmp_path / "out", adapter)
    again = read_peft_folder(tmp_path / "out")
    assert again.task_type == "FEATURE_EXTRACTION"
    for name, module in adapter.modules.items():
        np.testing.assert_array_equal(again.modules[name].B, module.B)
        np.testing.assert_array_equal(again.modules[name].A, module.A)
        assert again.modules[name].embedding == module.embedding


def test_a_folder_with_something_in_it_is_overwritten_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    adapter = adapter_of(np.random.default_rng(1), {"fc": 1})
    write_peft_folder(out, adapter)
    (out / "mine.txt").write_text("keep")
    with pytest.raises(AdapterError, match="not an empty folder"):
        write_peft_folder(out, adapter)
    assert (out / "mine.txt").read_text() == "keep"
    write_peft_folder(out, adapter, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert sorted(path.name for path in out.iterdir()) == [CONFIG, WEIGHTS]


def test_a_link_to_a_folder_is_replaced_and_the_folder_stays(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    write_peft_folder(other, adapter_of(np.random.default_rng(1), {"fc": 1}))
    out.symlink_to(other)
    write_peft_folder(out, adapter_of(np.random.default_rng(2), {"fc": 1}), overwrite=True)
    assert not out.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
    assert sorted(path.name for path in other.iterdir()) == [CONFIG, WEIGHTS]


def test_a_folder_that_cannot_be_replaced_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rename = tmp_path / "out", Path.rename
    write_peft_folder(out, adapter_of(np.random.default_rng(1), {"fc": 1}))
    before = (out / WEIGHTS).read_bytes()

    def failing(path: Path, target: Path) -> Path:
        if target == out and (path / WEIGHTS).read_bytes() != before:
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(AdapterError, match="no space left"):
        write_peft_folder(out, adapter_of(np.random.default_rng(2), {"fc": 1}), overwrite=True)
    assert (out / WEIGHTS).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_adapter_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeftError, match="without a LoRA module"):
        write_peft_folder(tmp_path / "out", PeftAdapter(modules={}, dense={}))
