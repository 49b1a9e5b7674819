"""Full fine-tuning: all of the model once, in fp32, and no more than that."""

import pytest
import torch
import transformers

from edge_client.errors import ConfigError
from edge_client.methods.full import Full
from edge_client.methods.scaling import LoraSettings
from edge_client.model.base_model import load_backbone
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.task_model import TaskModel
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.MEAN)
LANGUAGE = Task(kind=TaskKind.CAUSAL_LM)
BATCH = {"input_ids": torch.arange(4, 20).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}


def tuned(folder, task, quantization):
    manifest = write_manifest(folder, task, method=Full())
    backbone = load_backbone(
        Checkpoint.find(folder),
        manifest,
        quantization=quantization,
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
    )
    model = TaskModel(backbone, task).eval()
    return manifest, model, Full().tuner(model, manifest, LoraSettings())


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_a_tied_parameter_is_declared_once_and_an_untied_one_for_itself(request, family):
    folder = request.getfixturevalue(family)
    manifest = write_manifest(folder, LANGUAGE, method=Full())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert {t.name: t.shape for t in manifest.dense} == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert ("lm_head.weight" in manifest.names) is (family == "tiny_llama")
    assert all(tensor.initializer is None for tensor in manifest.dense)


def test_the_head_is_the_tasks_and_comes_once(tiny_bert):
    manifest = write_manifest(tiny_bert, Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes")), method=Full())
    model = transformers.BertForSequenceClassification.from_pretrained(tiny_bert)
    assert sorted(manifest.names) == sorted(name for name, _ in model.named_parameters())
    assert {t.name for t in manifest.dense if t.initializer} == {"classifier.weight", "classifier.bias"}


def test_a_head_that_is_not_to_be_trained_is_left_out(tiny_bert, tmp_path):
    transformers.BertForSequenceClassification.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_bert / name).read_bytes())
    task = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"))
    manifest = write_manifest(tmp_path, task, method=Full(), train_head=False)
    assert not [name for name in manifest.names if name.startswith("classifier")]
    assert len(write_manifest(tmp_path, task, method=Full()).dense) == len(manifest.dense) + 2


@pytest.mark.parametrize("quantization", [Quantization.NF4, Quantization.INT8])
def test_a_quantised_base_is_refused_with_the_reason(tiny_bert, quantization):
    with pytest.raises(ConfigError, match=f"base held in {quantization}, .* trains the weights themselves"):
        write_manifest(tiny_bert, LABELS, method=Full(), quantizations=[quantization])
    assert set(write_manifest(tiny_bert, LABELS, method=Full()).base.quantizations) == Full.quantizations


@pytest.mark.parametrize(("family", "task"), [("tiny_bert", LABELS), ("tiny_gpt2", LANGUAGE), ("tiny_llama", LANGUAGE)])
def test_a_bf16_base_is_trained_in_fp32_and_multiplies_in_bf16(request, family, task, handout):
    manifest, model, tuner = tuned(request.getfixturevalue(family), task, Quantization.BF16)
    parameters = tuner.load(handout(manifest, 1), 1, Layout.of(manifest))
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    kinds = set()
    layer = next(m for m in model.backbone.base_model.modules() if type(m).__name__ in ("Linear", "Conv1D"))
    layer.register_forward_hook(lambda module, values, output: kinds.add(output.dtype))
    logits = model.logits(BATCH)
    (logits**2).sum().backward()
    assert kinds == {torch.bfloat16}
    assert logits.dtype is torch.float32
    exact = tuned(request.getfixturevalue(family), task, Quantization.FP32)[:2]
    Full().tuner(exact[1], exact[0], LoraSettings()).load(handout(manifest, 1), 1, Layout.of(manifest))
    torch.testing.assert_close(logits, exact[1].logits(BATCH), rtol=0.05, atol=0.02)


def test_a_step_smaller_than_a_bf16_gap_is_not_lost(tiny_bert, handout):
    manifest, _, tuner = tuned(tiny_bert, LABELS, Quantization.BF16)
    layout = Layout.of(manifest)
    parameters = tuner.load(handout(manifest, 1), 1, layout)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 1e-5
    for name, value in tuner.change(layout).dense.items():
        assert abs(value - 1e-5).max() < 2e-7, name
