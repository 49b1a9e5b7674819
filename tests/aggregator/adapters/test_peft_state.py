"""Export and warm start: plain PEFT on an unquantised base computes what the state says, at every rank."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from aggregator.adapters import PeftAdapter, PeftModule, read_peft_folder, write_peft_folder
from aggregator.adapters.peft_state import adapter_from_state, beyond_peft, state_from_adapter
from aggregator.merge import Factors, GlobalState, Increment, MergeError
from protocol.initializers import Distribution, Initializer
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Pooling, Task, TaskKind

# peft 0.21 still asks transformers 5.23 by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOKENS = torch.arange(12).reshape(2, 6)
BERT = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "num_labels": 3,
}  # fmt: skip
LLAMA = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 12,
}  # fmt: skip


def built(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = {
            "bert-classifier": lambda: BertForSequenceClassification(BertConfig(**BERT)),
            "bert": lambda: BertModel(BertConfig(**BERT)),
            "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
        }[kind]()
    return model.eval()


TASKS = {
    "bert-classifier": Task(kind=TaskKind.CLASSIFICATION, labels=("a", "b", "c")),
    "bert": Task(kind=TaskKind.EMBEDDING),
    "llama": Task(kind=TaskKind.CAUSAL_LM),
}
HEAD = (
    DenseTensor(
        name="classifier.weight",
        shape=(3, 8),
        initializer=Initializer(distribution=Distribution.NORMAL, scale=0.5, seed=4),
    ),
    DenseTensor(name="classifier.bias", shape=(3,), initializer=Initializer(distribution=Distribution.ZEROS)),
)


def manifest_of(kind: str, model: nn.Module) -> Manifest:
    """Attention and feed-forward of the last layer: other layers end in the same names and must stay as they are."""
    linear = [
        LowRankModule(name=name, out_features=module.out_features, in_features=module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".1." in name
    ]
    return Manifest(
        base=BaseModel(name="tiny", fingerprint="0" * 64, architecture="Tiny", tokenizer_digest="0" * 64),
        task=TASKS[kind],
        rank_max=16,
        low_rank=tuple(linear),
        dense=HEAD if kind == "bert-classifier" else (),
    )


def random_state(manifest: Manifest, width: int) -> GlobalState:
    rng = np.random.default_rng(1)
    low_rank = {
        m.name: Factors(rng.standard_normal((m.out_features, width)), rng.standard_normal((width, m.in_features)) * 0.3)
        for m in manifest.low_rank
    }
    dense = {tensor.name: rng.standard_normal(tensor.shape) for tensor in manifest.dense}
    return GlobalState.zeros(manifest).add(Increment(low_rank=low_rank, dense=dense))


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out = model(input_ids=TOKENS)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def applied(model: PreTrainedModel, manifest: Manifest, state: GlobalState, rank: int) -> nn.Module:
    """The oracle: the truncated state added to the weights by hand."""
    changed = copy.deepcopy(model)
    parameters = dict(changed.named_parameters())
    with torch.no_grad():
        for name, module in state.low_rank.items():
            parameters[f"{name}.weight"] += torch.from_numpy(module.svd.truncate(rank).dense()).float()
        for tensor in manifest.dense:
            assert tensor.initializer is not None
            value = tensor.initializer.values(tensor.shape) + state.dense[tensor.name]
            parameters[tensor.name].copy_(torch.from_numpy(value))
    return changed


@pytest.mark.parametrize("rank", [1, 2, 16])
@pytest.mark.parametrize("kind", list(TASKS))
def test_peft_computes_with_the_export_what_the_state_says(tmp_path: Path, kind: str, rank: int) -> None:
    base = built(kind)
    manifest = manifest_of(kind, base)
    state = random_state(manifest, 3)
    write_peft_folder(tmp_path / "out", adapter_from_state(state, manifest, rank))
    expected = outputs(applied(base, manifest, state, rank))
    untouched = outputs(base)
    loaded = PeftModel.from_pretrained(built(kind), tmp_path / "out").eval()
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, untouched, atol=1e-2), "the state changes nothing, so this tests nothing"
    tuned = {name.removeprefix("base_model.model.") for name, m in loaded.named_modules() if hasattr(m, "lora_A")}
    assert tuned == {module.name for module in manifest.low_rank}


def test_an_export_of_nothing_changes_nothing_and_can_be_trained_on(tmp_path: Path) -> None:
    base = built("llama")
    manifest = manifest_of("llama", base)
    write_peft_folder(tmp_path / "out", adapter_from_state(GlobalState.zeros(manifest), manifest, 2))
    loaded = PeftModel.from_pretrained(built("llama"), tmp_path / "out", is_trainable=True)
    torch.testing.assert_close(outputs(loaded.eval()), outputs(base))
    loaded(input_ids=TOKENS, labels=TOKENS).loss.backward()
    gradients = [p.grad.abs().sum().item() for name, p in loaded.named_parameters() if "lora_B" in name]
    assert len(gradients) == len(manifest.low_rank)
    assert min(gradients) > 0


def test_a_run_started_from_an_export_starts_where_the_other_was(tmp_path: Path) -> None:
    manifest = manifest_of("bert-classifier", built("bert-classifier"))
    state = random_state(manifest, 3)
    write_peft_folder(tmp_path / "out", adapter_from_state(state, manifest, 16))
    again = state_from_adapter(read_peft_folder(tmp_path / "out"), manifest)
    for name, module in state.low_rank.items():
        np.testing.assert_allclose(again.low_rank[name].svd.dense(), module.svd.dense(), atol=1e-5)
        assert again.low_rank[name].svd.rank <= 8
    for name, value in state.dense.items():
        np.testing.assert_allclose(again.dense[name], value, atol=1e-6)


def test_an_adapter_with_foreign_modules_does_not_start_a_run() -> None:
    manifest = manifest_of("bert-classifier", built("bert-classifier"))
    known = manifest.low_rank[0].name
    modules = {
        known: PeftModule(np.ones((3, 1)), np.ones((1, 8))),
        "encoder.pooler": PeftModule(np.ones((8, 1)), np.ones((1, 8))),
    }
    adapter = PeftAdapter(modules=modules, dense={"score.weight": np.ones((3, 8), np.float32)})
    with pytest.raises(MergeError, match=r"shape \(3, 8\).*'encoder.pooler' is not.*'score.weight'"):
        state_from_adapter(adapter, manifest)


def test_tensors_of_the_base_itself_are_not_exported_without_their_values() -> None:
    manifest = manifest_of("bert", built("bert"))
    manifest = Manifest(
        base=manifest.base,
        task=manifest.task,
        rank_max=16,
        low_rank=manifest.low_rank,
        dense=(DenseTensor(name="encoder.layer.0.output.dense.bias", shape=(8,)),),
    )
    with pytest.raises(MergeError, match=r"'encoder.layer.0.output.dense.bias' is a tensor of the base model"):
        adapter_from_state(GlobalState.zeros(manifest), manifest, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"low_rank": (), "method": "bitfit"}, "method 'bitfit' has no low-rank modules"),
        (
            {"task": replace(TASKS["bert-classifier"], pooling=Pooling.MEAN)},
            "the head on mean pooling is no part of Tiny",
        ),
    ],
)
def test_what_peft_would_lose_without_a_word_is_refused(change: dict, reason: str) -> None:
    manifest = manifest_of("bert-classifier", built("bert-classifier"))
    assert beyond_peft(manifest) is None
    changed = replace(manifest, **change)
    with pytest.raises(MergeError, match=f"{reason}.*: export in the format 'tributary'"):
        adapter_from_state(GlobalState.zeros(changed), changed, 4)


def test_a_rank_that_is_none_is_refused() -> None:
    manifest = manifest_of("bert", built("bert"))
    with pytest.raises(MergeError, match="at least rank 1"):
        adapter_from_state(GlobalState.zeros(manifest), manifest, 0)
