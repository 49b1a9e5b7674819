"""What a device holds: the precision asked for, heads left alone, and weights that survive an evaluation."""

import logging
from dataclasses import replace
from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch
import transformers

from edge_client.errors import BaseModelError, ConfigError
from edge_client.methods.lora import LoraTuner
from edge_client.methods.scaling import LoraSettings
from edge_client.model.base_model import (
    load_backbone,
    load_config,
    load_image_processor,
    load_tokenizer,
    meta_backbone,
    resolve_compute_dtype,
)
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.quiet import quiet_forward
from edge_client.model.task_model import TaskModel
from protocol.initializers import Distribution, Initializer
from protocol.manifest import DenseTensor, Manifest, Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

EMBEDDING = Task(kind=TaskKind.EMBEDDING, pooling=Pooling.MEAN, max_length=16)
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16)
LANGUAGE = Task(kind=TaskKind.CAUSAL_LM, max_length=16)


def load(folder: Path, manifest: Manifest, quantization: Quantization) -> transformers.PreTrainedModel:
    return load_backbone(
        Checkpoint.find(folder),
        manifest,
        quantization=quantization,
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
    )


@pytest.mark.parametrize(("name", "task"), [("tiny_bert", EMBEDDING), ("tiny_llama", LANGUAGE)])
@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.INT8])
def test_gradients_after_an_evaluation_are_those_without_one(name, task, quantization, request, handout, monkeypatch):
    """BERT has biases, Llama has none; widths 48, 24 and 80 are not divisible by 64.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 repacks NF4 weights at the first forward pass without gradients. The
    CPU is made to say that it has it, so that the test bites on any machine.
    """
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    folder = request.getfixturevalue(name)
    manifest = write_manifest(folder, task)
    model = TaskModel(load(folder, manifest, quantization), task)
    lora = LoraTuner(model, manifest, LoraSettings())
    batch = {"input_ids": torch.arange(4, 20).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}

    def output() -> torch.Tensor:
        return model.logits(batch) if task is LANGUAGE else model.pooled(batch)

    def gradients() -> list[np.ndarray]:
        parameters = lora.load(handout(manifest, 4, size=0.1), 4, Layout.of(manifest))
        model.train()
        torch.manual_seed(0)
        (output() ** 2).sum().backward()
        return [parameter.grad.numpy() for parameter in parameters]

    with quiet_forward():
        untouched = gradients()
        model.eval()
        with torch.no_grad():
            output()
        evaluated = gradients()
    assert all(gradient.any() for gradient in untouched)
    for before, after in zip(untouched, evaluated, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("quantization", "kind"),
    [
        (Quantization.NF4, bitsandbytes.nn.Linear4bit),
        (Quantization.INT8, bitsandbytes.nn.Linear8bitLt),
        (Quantization.BF16, torch.nn.Linear),
        (Quantization.FP32, torch.nn.Linear),
    ],
)
def test_tuned_modules_are_held_as_asked(tiny_bert, quantization, kind):
    manifest = write_manifest(tiny_bert, EMBEDDING)
    model = load(tiny_bert, manifest, quantization)
    assert {type(model.get_submodule(module.name)) for module in manifest.low_rank} == {kind}
    dtype = torch.bfloat16 if quantization is Quantization.BF16 else torch.float32
    assert model.embeddings.word_embeddings.weight.dtype is dtype
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.INT8])
def test_a_head_is_never_quantised(tiny_bert, tiny_llama, quantization):
    bert = load(tiny_bert, write_manifest(tiny_bert, LABELS), quantization)
    assert type(bert.classifier) is torch.nn.Linear
    llama = load(tiny_llama, write_manifest(tiny_llama, LABELS), quantization)
    assert type(llama.score) is torch.nn.Linear
    language = load(tiny_llama, write_manifest(tiny_llama, LANGUAGE), quantization)
    assert type(language.lm_head) is torch.nn.Linear


@pytest.mark.parametrize(
    ("trained", "few"),
    [
        ("encoder.layer.0.output.dense.bias", 12),
        ("encoder.layer.0.output.dense.weight", 11),
        ("encoder.layer.0.output.LayerNorm.weight", 12),
        ("of_the_model_itself", 12),
    ],
)
def test_only_linear_layers_whose_weights_are_trained_stay_unquantised(tiny_bert, trained, few):
    """The quantiser leaves alone all that ends with a name it is given; the whole model's, which is empty, ends all."""
    written = write_manifest(tiny_bert, EMBEDDING)
    tensor = DenseTensor(name=trained, shape=(48,), initializer=Initializer(distribution=Distribution.ZEROS))
    model = load(tiny_bert, replace(written, low_rank=(), dense=(tensor,)), Quantization.NF4)
    assert sum(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.modules()) == few


def test_loading_is_silent_and_leaves_logging_as_it_was(tiny_bert, capfd):
    verbosity = transformers.utils.logging.get_verbosity()
    load(tiny_bert, write_manifest(tiny_bert, LABELS), Quantization.NF4)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert transformers.utils.logging.get_verbosity() == verbosity
    assert transformers.utils.logging.is_progress_bar_enabled()
    assert logging.getLogger("bitsandbytes.autograd._functions").level == logging.NOTSET


def test_loading_leaves_the_random_stream_as_it_was(tiny_bert):
    manifest = write_manifest(tiny_bert, LABELS)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tiny_bert, manifest, Quantization.FP32)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_that_lacks_a_tensor_the_manifest_takes_for_granted_is_refused(tiny_bert, tiny_llama):
    manifest = write_manifest(tiny_bert, LABELS)
    without_head = Manifest(base=manifest.base, task=manifest.task, rank_max=4, low_rank=manifest.low_rank)
    with pytest.raises(BaseModelError, match=r"lacks 'classifier\.bias'"):
        load(tiny_bert, without_head, Quantization.FP32)


def test_another_architecture_is_refused(tiny_bert, tiny_llama):
    with pytest.raises(BaseModelError, match="the run tunes a BertModel, this is a LlamaModel"):
        load(tiny_llama, write_manifest(tiny_bert, EMBEDDING), Quantization.FP32)


def test_a_task_that_the_architecture_cannot_do_is_refused(tmp_path):
    config = transformers.T5Config(
        vocab_size=8, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="cannot be used for causal-lm"):
        meta_backbone(Checkpoint.find(tmp_path), LANGUAGE)


@pytest.mark.parametrize("pooling", [Pooling.MODEL, Pooling.MEAN])
def test_a_task_on_texts_needs_a_model_of_texts_and_one_on_images_one_of_images(tiny_bert, tiny_vit, pooling):
    images = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("no", "yes"), pooling=pooling)
    texts = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), pooling=pooling)
    with pytest.raises(BaseModelError, match=r"is a bert model, which takes text: .* needs a model that takes image"):
        meta_backbone(Checkpoint.find(tiny_bert), images)
    with pytest.raises(BaseModelError, match=r"is a vit model, which takes image: .* needs a model that takes text"):
        meta_backbone(Checkpoint.find(tiny_vit), texts)


def test_a_model_without_an_image_processor_is_refused(tiny_bert):
    with pytest.raises(BaseModelError, match="its image processor cannot be loaded"):
        load_image_processor(Checkpoint.find(tiny_bert))


def test_labels_reach_the_config_by_name(tiny_bert):
    config = load_config(Checkpoint.find(tiny_bert), LABELS)
    assert config.id2label == {0: "no", 1: "yes"}


def test_a_tokenizer_without_padding_pads_with_its_end_token(tiny_llama):
    assert load_tokenizer(Checkpoint.find(tiny_llama)).pad_token == "[SEP]"
    assert load_config(Checkpoint.find(tiny_llama), LABELS).pad_token_id == 3


@pytest.mark.parametrize(
    ("found", "dtype"),
    [
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_auto_computes_in_bf16_where_the_cpu_multiplies_it(found, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert resolve_compute_dtype("auto", torch.device("cpu")) is dtype
    assert resolve_compute_dtype("bf16", torch.device("cpu")) is torch.bfloat16


def test_an_unknown_compute_dtype_is_refused():
    with pytest.raises(ConfigError, match="'fp8'"):
        resolve_compute_dtype("fp8", torch.device("cpu"))
