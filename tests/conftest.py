"""Settings that all tests share, tiny models with tokenizers, and what trainers are given to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from protocol.assignment import Assignment, AssignmentKind, Handout, LocalTraining
from protocol.codecs import Codec
from protocol.initializers import fresh_rows
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors, Layout

# The same examples on every run: a red build means a change in the code, and can be had again.
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")

WORDS = [f"w{index}" for index in range(50)] + ["good", "bad", "film", "yes", "no", "a", "b", "c"]


def _save_tokenizer(folder: Path, *, pairs: bool) -> None:
    import tokenizers
    import transformers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate(special + WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names: dict[str, Any] = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    if pairs:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        names |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        names["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)


def _save_model(folder: Path, architecture: Callable[..., Any], config: Any) -> None:
    """A model of this architecture, with the same random weights each time."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with biases, whose widths 48 and 80 are not divisible by 64."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    _save_model(folder, transformers.BertModel, config)
    _save_tokenizer(folder, pairs=True)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama without biases or a padding token."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=80,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
    )
    _save_model(folder, transformers.LlamaForCausalLM, config)
    _save_tokenizer(folder, pairs=False)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer GPT-2: ``Conv1D`` layers with biases, and an output embedding that is the input's."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_inner=80, n_positions=64, bos_token_id=2, eos_token_id=3
    )
    _save_model(folder, transformers.GPT2LMHeadModel, config)
    _save_tokenizer(folder, pairs=False)
    return folder


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block ViT on four patches of 4 × 4 pixels and a class token, with the image processor of a checkpoint."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=80,
        image_size=8,
        patch_size=4,
    )
    _save_model(folder, transformers.ViTModel, config)
    transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture
def assign() -> Callable[..., Assignment]:
    """Builds an assignment from the few things a test cares about."""

    def build(
        rank: int, *, slots: int | None = None, kind: AssignmentKind = AssignmentKind.TRAIN, seed: int = 0, **local: Any
    ) -> Assignment:
        active, frozen = local.pop("active", None), local.pop("frozen_factors", ())
        return Assignment(
            kind=kind,
            run="run",
            round=1,
            version=0,
            token="0" * 32,
            rank=rank,
            handout=Handout(digest="0" * 64, object_bytes=0, codec=Codec.FP32, slots=rank if slots is None else slots),
            active=active,
            frozen_factors=frozen,
            local=LocalTraining(**local),
            seed=seed,
        )

    return build


@pytest.fixture(scope="session")
def handout() -> Callable[..., AdapterTensors]:
    """Builds a hand-out: fresh rows of ``A``, and ``B̂`` and dense offsets of a given size (0: untrained)."""

    def build(manifest: Manifest, slots: int, size: float = 0.0) -> AdapterTensors:
        rng = np.random.default_rng(7)
        layout = Layout.of(manifest)
        tensors = layout.zeros(slots)
        for module in layout.low_rank:
            b, a = layout.factors(tensors.slots, module.name)
            a[:] = fresh_rows(1, module.name, range(slots), module.in_features)
            b[:] = size * rng.standard_normal(b.shape)
        dense = {t.name: (size * rng.standard_normal(t.shape)).astype(np.float32) for t in layout.dense}
        return AdapterTensors(dense, tensors.slots)

    return build
