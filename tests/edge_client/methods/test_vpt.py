"""Visual prompts against the paper's equations, block by block, and against the counts of FedPEFT's setting."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import transformers

from edge_client.errors import ConfigError
from edge_client.methods import Subject, method_of
from edge_client.methods.scaling import LoraSettings
from edge_client.methods.vpt import VPT
from edge_client.model.base_model import load_backbone
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.task_model import TaskModel
from protocol.initializers import Distribution
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

IMAGES = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.MEAN)
LENGTH = 3
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)}


def prompted(folder, handout, *, quantization=Quantization.FP32, dtype=torch.float32, **task):
    """A device's model with prompts of random offsets loaded, and what tunes it."""
    manifest = write_manifest(folder, dataclasses.replace(IMAGES, **task), method=VPT(length=LENGTH))
    backbone = load_backbone(
        Checkpoint.find(folder),
        manifest,
        quantization=quantization,
        device=torch.device("cpu"),
        compute_dtype=dtype,
    )
    model = TaskModel(backbone, manifest.task).eval()
    tuner = method_of(manifest).tuner(model, manifest, LoraSettings())
    return model, tuner, tuner.load(handout(manifest, 1, size=0.5), 1, Layout.of(manifest))


def prompted_states(vit, prompts, pixels):
    """Equation 5: ``[x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}])``."""
    x, E = vit.embeddings(pixels).split((1, 4), dim=1)
    for block, P in zip(vit.layers, prompts, strict=True):
        x, _, E = block(torch.cat((x, P.expand(len(x), -1, -1), E), 1)).split((1, len(P), 4), dim=1)
    return vit.layernorm(torch.cat((x, E), 1))


@pytest.mark.parametrize("pooling", list(Pooling))
def test_every_block_sees_its_own_prompts_and_those_of_no_other(tiny_vit, handout, pooling):
    model, _, parameters = prompted(tiny_vit, handout, pooling=pooling)
    prompts = [parameter for parameter in parameters if parameter.shape == (LENGTH, 48)]
    assert len(prompts) == 2
    with torch.no_grad():
        states = prompted_states(transformers.ViTModel.from_pretrained(tiny_vit), prompts, PIXELS["pixel_values"])
        vector = states[:, 1:].mean(1) if pooling is Pooling.MEAN else states[:, 0]
        head = model.head or model.backbone.classifier
        torch.testing.assert_close(model.logits(PIXELS), head(vector), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [(Quantization.FP32, torch.float32), (Quantization.NF4, torch.float32), (Quantization.BF16, torch.bfloat16)],
)
def test_prompts_and_head_alone_are_trained_in_fp32_and_sent(tiny_vit, handout, quantization, dtype):
    model, tuner, parameters = prompted(tiny_vit, handout, quantization=quantization, dtype=dtype)
    assert sorted(tuple(p.shape) for p in parameters) == [(2,), (2, 48), (LENGTH, 48), (LENGTH, 48)]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
    model.logits(PIXELS).square().sum().backward()
    with torch.no_grad():
        for parameter in parameters:
            assert parameter.grad.abs().sum() > 0
            parameter += 0.5
    layout = Layout.of(write_manifest(tiny_vit, IMAGES, method=VPT(length=LENGTH)))
    change = tuner.change(layout)
    assert sorted(change.dense) == ["classifier.bias", "classifier.weight", "vpt.0", "vpt.1"]
    for value in change.dense.values():
        np.testing.assert_allclose(value, 0.5, atol=1e-6)


def test_a_copy_of_a_model_has_prompts_of_its_own(tiny_vit, handout):
    model, _, parameters = prompted(tiny_vit, handout)
    with torch.no_grad():
        before, copied = model.logits(PIXELS), copy.deepcopy(model)
        for parameter in parameters:
            parameter += 0.5
        assert not torch.allclose(model.logits(PIXELS), before)
        torch.testing.assert_close(copied.logits(PIXELS), before)


def test_fresh_prompts_are_uniform_within_xaviers_bound_and_no_two_blocks_start_alike(tiny_vit):
    manifest = write_manifest(tiny_vit, IMAGES, method=VPT(length=200))
    first, second = (
        tensor.initializer.values(tensor.shape) for tensor in manifest.dense if tensor.name.startswith("vpt.")
    )
    bound = (6 / (3 * 4 * 4 + 48)) ** 0.5
    for values in (first, second):
        assert 0.99 * bound < np.abs(values).max() <= bound
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    assert {t.initializer.distribution for t in manifest.dense if "vpt" in t.name} == {Distribution.UNIFORM}


def test_a_vit_b_of_a_hundred_classes_trains_169060_numbers():
    with torch.device("meta"):
        backbone = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
        head = torch.nn.Linear(backbone.config.hidden_size, 100)
    subject = Subject(backbone=backbone, task=IMAGES, rank_max=1, head=(), seed=0)
    prompts = sum(tensor.size for tensor in VPT().declare(subject).dense)
    assert prompts == 10 * 12 * 768
    assert prompts + sum(parameter.numel() for parameter in head.parameters()) == 169_060


def test_a_model_of_texts_is_refused(tiny_bert):
    task = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.MEAN)
    with pytest.raises(ConfigError, match=r"method 'vpt': expected a vision transformer .* this is a BertModel"):
        write_manifest(tiny_bert, task, method=VPT())


@pytest.mark.parametrize("length", [0, -1, 2.0, True, "3"])
def test_a_length_that_is_none_is_refused(length):
    with pytest.raises(ConfigError, match="method 'vpt': length: expected a number of tokens"):
        VPT(length=length)
