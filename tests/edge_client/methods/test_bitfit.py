"""BitFit: biases alone are trained, in fp32, and the weights beside them stay as they are held."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers.pytorch_utils import Conv1D

from edge_client.errors import ConfigError
from edge_client.methods.bitfit import BitFit
from edge_client.methods.lora import Lora
from edge_client.methods.scaling import LoraSettings
from edge_client.model import base_model
from edge_client.model.base_model import load_backbone, switch_off_dropout
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.cpu_nf4 import dequantise
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.quiet import quiet_forward
from edge_client.model.task_model import TaskModel
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.MEAN)
LANGUAGE = Task(kind=TaskKind.CAUSAL_LM)
BATCH = {"input_ids": torch.arange(4, 20).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
KINDS = {
    Quantization.NF4: (Linear4bit,),
    Quantization.INT8: (Linear8bitLt,),
    Quantization.BF16: (nn.Linear, Conv1D),
    Quantization.FP32: (nn.Linear, Conv1D),
}


@pytest.fixture(scope="module")
def biased(request, tmp_path_factory) -> Callable[[str], Path]:
    """A tiny model whose biases are not zero, unlike those of a fresh one."""

    @functools.cache
    def make(family: str) -> Path:
        source, folder = request.getfixturevalue(family), tmp_path_factory.mktemp("biased")
        architecture = transformers.GPT2LMHeadModel if family == "tiny_gpt2" else transformers.BertModel
        model, generator = architecture.from_pretrained(source), torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2, generator=generator)
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((source / name).read_bytes())
        return folder

    return make


def load(folder, manifest, quantization, compute_dtype=torch.float32):
    backbone = load_backbone(
        Checkpoint.find(folder),
        manifest,
        quantization=quantization,
        device=torch.device("cpu"),
        compute_dtype=compute_dtype,
    )
    switch_off_dropout(backbone)
    return TaskModel(backbone, manifest.task)


def linear_layers(model, quantization):
    body = model.backbone.base_model
    return [type(module) for module in body.modules() if type(module) in KINDS[quantization]]


def test_the_biases_of_the_model_are_declared_and_those_of_normalisations_too(tiny_bert):
    manifest = write_manifest(tiny_bert, LABELS, method=BitFit())
    model = transformers.BertModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    biases = {name: tuple(p.shape) for name, p in model.named_parameters() if name.endswith("bias")}
    assert {t.name: t.shape for t in manifest.dense if t.initializer is None} == biases
    assert any("LayerNorm" in name for name in biases)
    assert manifest.names[:2] == ("classifier.weight", "classifier.bias")


def test_a_model_without_biases_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no biases"):
        write_manifest(tiny_llama, LANGUAGE, method=BitFit())


@pytest.mark.parametrize(
    ("quantization", "compute_dtype"),
    [
        (Quantization.NF4, torch.float32),
        (Quantization.NF4, torch.bfloat16),
        (Quantization.INT8, torch.float32),
        (Quantization.INT8, torch.bfloat16),
        (Quantization.BF16, torch.bfloat16),
    ],
)
@pytest.mark.parametrize(("family", "task"), [("tiny_bert", LABELS), ("tiny_gpt2", LANGUAGE)])
def test_only_biases_change_and_weights_stay_as_they_are_held(
    biased, family, task, quantization, compute_dtype, handout
):
    """Over an evaluation and two steps, with hand-outs that are not zero."""
    folder = biased(family)
    manifest, plain = write_manifest(folder, task, method=BitFit()), write_manifest(folder, task, method=Lora())
    model = load(folder, manifest, quantization, compute_dtype)
    tuner, layout = BitFit().tuner(model, manifest, LoraSettings()), Layout.of(manifest)
    layers = linear_layers(model, quantization)
    assert layers == linear_layers(load(folder, plain, quantization, compute_dtype), quantization)
    assert layers

    parameters = tuner.load(handout(manifest, 1, size=0.1), 1, layout)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert not [name for name in frozen if name.endswith("bias")]
    with quiet_forward():
        with torch.no_grad():
            model.eval().logits(BATCH)
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            (model.train().logits(BATCH) ** 2).mean().backward()
            optimizer.step()
    for name, change in tuner.change(layout).dense.items():
        assert change.any() or "key" in name, name  # a key's bias is undone by the softmax
    held = dict(model.named_parameters())
    assert all(torch.equal(held[name], value) for name, value in frozen.items())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


def test_bitsandbytes_own_forward_pass_leaves_the_biases_in_fp32(tiny_bert, handout, monkeypatch):
    """As on a GPU, where 4-bit layers keep it: it turns a bias that it holds into the dtype that it multiplies in."""
    monkeypatch.setattr(base_model, "mend_cpu_nf4", lambda model: None)
    manifest = write_manifest(tiny_bert, LABELS, method=BitFit())
    model = load(tiny_bert, manifest, Quantization.NF4, torch.bfloat16)
    parameters = BitFit().tuner(model, manifest, LoraSettings()).load(handout(manifest, 1), 1, Layout.of(manifest))
    (model.train().logits(BATCH) ** 2).mean().backward()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert {parameter.grad.dtype for parameter in parameters} == {torch.float32}
    assert all(parameter.grad.any() for parameter in parameters)


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.INT8, Quantization.BF16])
@pytest.mark.parametrize(("family", "task"), [("tiny_bert", LABELS), ("tiny_gpt2", LANGUAGE)])
def test_output_and_gradients_are_those_of_an_fp32_model_with_the_held_weights(
    biased, family, task, quantization, handout
):
    folder = biased(family)
    manifest = write_manifest(folder, task, method=BitFit())
    layout, given = Layout.of(manifest), handout(manifest, 1, size=0.1)
    found, expected = load(folder, manifest, quantization), load(folder, manifest, Quantization.FP32)
    copy_weights(found.backbone, expected.backbone)
    gradients = []
    for model in (found, expected):
        BitFit().tuner(model, manifest, LoraSettings()).load(given, 1, layout)
        with quiet_forward():
            logits = model.train().logits(BATCH)
        (logits**2).mean().backward()
        gradients.append([logits.detach(), *(model.owner(name)[1].grad for name in manifest.names)])
    tolerance = 0.05 if quantization is Quantization.BF16 else 1e-4
    for one, other, name in zip(*gradients, ("logits", *manifest.names), strict=True):
        if "key" not in name:
            assert torch.norm(one - other) <= tolerance * torch.norm(other), name


@pytest.mark.parametrize("pooling", [Pooling.MODEL, Pooling.MEAN])
def test_images_in_fp32_go_through_a_bf16_model_whose_first_bias_is_trained(tiny_vit, pooling, handout):
    task = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("no", "yes"), pooling=pooling)
    manifest = write_manifest(tiny_vit, task, method=BitFit())
    pixels = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = []
    for quantization in (Quantization.FP32, Quantization.BF16):
        model = load(tiny_vit, manifest, quantization)
        tuner = BitFit().tuner(model, manifest, LoraSettings())
        parameters = tuner.load(handout(manifest, 1, size=0.1), 1, Layout.of(manifest))
        scores.append(model.train().logits({"pixel_values": pixels}))
        (scores[-1] ** 2).mean().backward()
        assert {parameter.grad.dtype for parameter in parameters} == {torch.float32}
    torch.testing.assert_close(scores[1], scores[0], rtol=0.03, atol=0.03)


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.BF16])
def test_a_copy_of_the_model_has_biases_of_its_own(tiny_bert, quantization, handout):
    manifest = write_manifest(tiny_bert, LABELS, method=BitFit())
    model = load(tiny_bert, manifest, quantization, torch.bfloat16)
    BitFit().tuner(model, manifest, LoraSettings()).load(handout(manifest, 1, size=0.1), 1, Layout.of(manifest))
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = model.logits(BATCH)
        for name, parameter in other.named_parameters():
            if "backbone" in name and name.endswith("bias"):
                parameter.zero_()
        assert not torch.allclose(other.logits(BATCH), before, rtol=0.05)
        assert torch.equal(model.logits(BATCH), before)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Gives an fp32 model the values that one in fewer bits computes with."""
    for name, module in target.named_modules():
        held = source.get_submodule(name)
        if isinstance(held, Linear4bit):
            weight = dequantise(held.weight.data, held.weight.quant_state, torch.float32)
        elif isinstance(held, Linear8bitLt):
            weight = held.weight.data.float() * held.weight.SCB.unsqueeze(1) / 127
        elif isinstance(getattr(held, "weight", None), nn.Parameter):
            weight = held.weight.detach().float()
        else:
            continue
        turned = isinstance(module, Conv1D) and not isinstance(held, Conv1D)  # quantised as [out, in]
        module.weight.data = weight.T.contiguous() if turned else weight


def test_zero_offsets_leave_the_model_as_it_was(biased, handout):
    manifest = write_manifest(biased("tiny_bert"), LABELS, method=BitFit())
    for quantization in Quantization:
        model = load(biased("tiny_bert"), manifest, quantization).eval()
        with torch.no_grad(), quiet_forward():
            before = model.pooled(BATCH)
            BitFit().tuner(model, manifest, LoraSettings()).load(handout(manifest, 1), 1, Layout.of(manifest))
            tolerance = 0.02 if quantization is Quantization.BF16 else 1e-5
            np.testing.assert_allclose(model.pooled(BATCH), before, atol=tolerance, err_msg=quantization)
