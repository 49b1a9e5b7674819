"""Folders that PEFT saved for real architectures, merged, loaded by PEFT, compared with the dense merge in float64.

The oracle is PEFT's own: the weighted sum of what each adapter's layers say they add to their weights.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from aggregator.adapters import merge_folders
from aggregator.merge import MergeError

# peft 0.21 still asks transformers 5.23 by the old name, and says what it changes in a configuration by itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]

README = Path(__file__).parents[3] / "aggregator/README.md"
TOKENS = torch.arange(12).reshape(2, 6)
WEIGHTS = [3.0, 1.0, 4.0]


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=2, n_head=2))


def bert() -> PreTrainedModel:
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12}
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, num_labels=3))


def llama() -> PreTrainedModel:
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))


Settings = dict[str, Any]
MIXED: list[Settings] = [
    {"r": 2, "lora_alpha": 4},
    {"r": 4, "lora_alpha": 16, "use_rslora": True},
    {"r": 8, "lora_alpha": 2},
]
CASES: dict[str, tuple[Callable[[], PreTrainedModel], list[Settings]]] = {
    "gpt2, Conv1D and embedding": (
        gpt2,
        [s | {"target_modules": ["c_attn", "c_proj", "wte"], "task_type": "CAUSAL_LM"} for s in MIXED],
    ),
    "gpt2, whose flag differs between adapters": (
        gpt2,
        [s | {"target_modules": ["c_attn", *more]} for s, more in zip(MIXED, (["lm_head"], [], ["c_fc"]), strict=True)],
    ),
    "bert, embedding and head": (
        bert,
        [s | {"target_modules": ["query", "dense", "word_embeddings"], "task_type": "SEQ_CLS"} for s in MIXED],
    ),
    "llama, embedding, of which PEFT saves a copy": (
        llama,
        [s | {"target_modules": ["q_proj", "embed_tokens"], "task_type": "CAUSAL_LM"} for s in MIXED],
    ),
    "llama, all linear, patterns": (
        llama,
        [
            s
            | {"target_modules": "all-linear", "rank_pattern": {r"mlp\.\w+": 3}, "alpha_pattern": {"^model.*q_proj": 5}}
            for s in MIXED
        ],
    ),
    "llama, whole modules beside": (
        llama,
        [s | {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]} for s in MIXED],
    ),
    "llama, modules that only some have": (
        llama,
        [
            s | {"target_modules": t}
            for s, t in zip(MIXED, (["q_proj"], ["o_proj"], ["q_proj", "up_proj"]), strict=True)
        ],
    ),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    build, settings = CASES[request.param]
    root = tmp_path_factory.mktemp("adapters")
    models = [trained(build, index, setting) for index, setting in enumerate(settings)]
    for index, model in enumerate(models):
        model.save_pretrained(root / f"{index}")
    return build, models, [root / f"{index}" for index in range(len(models))]


def built(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def trained(build: Callable[[], PreTrainedModel], seed: int, settings: Settings) -> PeftModel:
    """A PEFT model whose trainables are random, as after training."""
    model = get_peft_model(built(build), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3, generator=generator)
    return model


def deltas(model: PeftModel) -> dict[str, NDArray[np.float64]]:
    """What PEFT says each module adds to its weight, in float64."""
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in model.double().named_modules()
        if hasattr(module, "get_delta_weight")
    }


def saved_whole(model: PeftModel) -> dict[str, NDArray[np.float64]]:
    return {
        name.replace(".modules_to_save.default", ""): parameter.detach().double().numpy()
        for name, parameter in model.named_parameters()
        if ".modules_to_save.default" in name
    }


def weighted(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    total: dict[str, NDArray[np.float64]] = {}
    for weight, part in zip(WEIGHTS, parts, strict=True):
        for name, value in part.items():
            total[name] = total.get(name, np.zeros_like(value)) + weight / sum(WEIGHTS) * value
    return total


def truncated(matrix: NDArray[np.float64], rank: int | None) -> NDArray[np.float64]:
    U, S, Vt = np.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vt[:rank]


@pytest.mark.parametrize("rank", [None, 3])
def test_peft_loads_the_merged_folder_as_the_dense_merge(case: Any, tmp_path: Path, rank: int | None) -> None:
    build, models, folders = case
    merge_folders(folders, WEIGHTS, rank, tmp_path / "out")
    loaded = PeftModel.from_pretrained(built(build), tmp_path / "out")
    got, expected = deltas(loaded), weighted([deltas(model) for model in models])
    assert got.keys() == expected.keys()
    for name, matrix in expected.items():
        error = np.linalg.norm(got[name] - truncated(matrix, rank)) / np.linalg.norm(matrix)
        assert error < 5e-7, f"{name}: {error}"
    whole = weighted([saved_whole(model) for model in models])
    assert saved_whole(loaded).keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(saved_whole(loaded)[name], value, rtol=1e-6, atol=1e-7)


def test_the_merged_model_computes_what_the_dense_merge_computes(case: Any, tmp_path: Path) -> None:
    build, models, folders = case
    merge_folders(folders, WEIGHTS, None, tmp_path / "out")
    loaded = PeftModel.from_pretrained(built(build), tmp_path / "out").double().eval()
    dense = built(build).double()
    whole = {
        name.removeprefix("base_model.model."): value
        for name, value in weighted([saved_whole(model) for model in models]).items()
    }
    with torch.no_grad():
        untouched = dense(TOKENS).logits.clone()
        for name, matrix in weighted([deltas(model) for model in models]).items():
            layer = dense.get_submodule(name)
            # A layer of its own: PEFT adapts one of two tied tables, not both.
            layer.weight = torch.nn.Parameter(layer.weight + torch.from_numpy(matrix))
        for name, value in whole.items():
            dense.get_parameter(name).copy_(torch.from_numpy(value))
        torch.testing.assert_close(loaded(TOKENS).logits, dense(TOKENS).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(dense(TOKENS).logits, untouched, atol=1e-2), "nothing was tuned, so this tests nothing"


def save(folder: Path, seed: int, **settings: Any) -> Path:
    trained(llama, seed, {"r": 2, "lora_alpha": 4} | settings).save_pretrained(folder)
    return folder


def test_copies_of_a_base_that_differ_are_refused(tmp_path: Path) -> None:
    folders = [save(tmp_path / name, seed, target_modules=["embed_tokens"]) for seed, name in enumerate("ab")]
    without = save(tmp_path / "without", 2, target_modules=["q_proj"])
    merge_folders([without, *folders], None, None, tmp_path / "out")
    copy = "base_model.model.model.embed_tokens.base_layer.weight"
    first, merged = (load_file(folder / "adapter_model.safetensors")[copy] for folder in (folders[0], tmp_path / "out"))
    np.testing.assert_array_equal(merged, first)
    tensors = load_file(folders[1] / "adapter_model.safetensors")
    tensors[copy][0, 0] += 1
    save_file(tensors, folders[1] / "adapter_model.safetensors")
    with pytest.raises(MergeError, match=r"b: its copy of the base's 'model.embed_tokens.weight' is not that"):
        merge_folders(folders, None, None, tmp_path / "out", overwrite=True)


def test_an_embedding_that_was_resized_travels_with_the_adapter(tmp_path: Path) -> None:
    """PEFT saves such a table although nothing tuned it."""
    model = trained(llama, 0, {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
    model.save_pretrained(tmp_path / "in", save_embedding_layers=True)
    merge_folders([tmp_path / "in"], None, None, tmp_path / "out")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("in", "out"))
    for name in ("model.embed_tokens", "lm_head"):
        np.testing.assert_array_equal(
            after[f"base_model.model.{name}.weight"], before[f"base_model.model.{name}.weight"]
        )


def test_the_lines_in_the_readme_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    folders = [save(tmp_path / n, i, r=2 + i, target_modules=["q_proj"]) for i, n in enumerate("ABC")]
    section = README.read_text().split("## The merge alone")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], {})
    assert "rank 8 leaves out 0.0%" in capsys.readouterr().out
    expected = [deltas(PeftModel.from_pretrained(built(llama), folder)) for folder in folders]
    for name, got in deltas(PeftModel.from_pretrained(built(llama), tmp_path / "merged")).items():
        total = sum(weight / 5 * one[name] for weight, one in zip((3, 1, 1), expected, strict=True))
        assert np.linalg.norm(got - truncated(total, 8)) < 5e-7 * np.linalg.norm(total)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aggregator.cli", "merge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_merges_and_names_the_folder_it_refuses(tmp_path: Path) -> None:
    folders = [save(tmp_path / f"{rank}", rank, r=rank, target_modules=["q_proj"]) for rank in (2, 4, 8)]
    done = run(*folders, "--weights", "3,1,4", "--rank", "8", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["folders"] == 3
    loaded = PeftModel.from_pretrained(built(llama), tmp_path / "out")
    models = [PeftModel.from_pretrained(built(llama), folder) for folder in folders]
    expected = weighted([deltas(model) for model in models])
    for name, got in deltas(loaded).items():
        np.testing.assert_allclose(got, expected[name], rtol=0, atol=5e-7 * np.linalg.norm(expected[name]))

    dora = save(tmp_path / "dora", 0, target_modules=["q_proj"], use_dora=True)
    refused = run(*folders, dora, "--out", tmp_path / "none", "--json")
    assert refused.returncode == 1
    assert str(dora / "adapter_config.json") in json.loads(refused.stderr)["message"]
    assert "DoRA" in refused.stderr
    assert not (tmp_path / "none").exists()
