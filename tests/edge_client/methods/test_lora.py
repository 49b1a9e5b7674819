"""The adapter against dense float64 arithmetic: what is loaded is what the hand-out says, at every rank and scaling."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer

from edge_client.errors import AggregatorError, BaseModelError, ConfigError
from edge_client.methods import method_of
from edge_client.methods.lora import LoraTuner
from edge_client.methods.scaling import LoraSettings
from edge_client.model.base_model import load_backbone
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.task_model import TaskModel
from protocol.manifest import LowRankModule, Manifest, Pooling, Quantization, Task, TaskKind
from protocol.payload import AdapterTensors, Factor, Layout

EMBEDDING = Task(kind=TaskKind.EMBEDDING, pooling=Pooling.MEAN)
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"))
BATCH = {"input_ids": torch.arange(4, 20).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}


@pytest.fixture
def build(tiny_bert):
    def build(task=EMBEDDING, settings=None, quantization=Quantization.FP32):
        manifest = write_manifest(tiny_bert, task)
        backbone = load_backbone(
            Checkpoint.find(tiny_bert),
            manifest,
            quantization=quantization,
            device=torch.device("cpu"),
            compute_dtype=torch.float32,
        )
        model = TaskModel(backbone, task).eval()
        return manifest, model, LoraTuner(model, manifest, settings or LoraSettings())

    return build


def dense_model(folder, manifest, adapter: AdapterTensors) -> torch.nn.Module:
    """The same base with ``B̂A`` of all slots added to its weights, computed in float64."""
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    layout = Layout.of(manifest)
    for module in manifest.low_rank:
        b, a = (factor.astype(np.float64) for factor in layout.factors(adapter.slots, module.name))
        weight = model.get_submodule(module.name).weight
        weight.data = (weight.double() + torch.from_numpy(b @ a)).float()
    return model


@pytest.mark.parametrize(
    "settings",
    [
        LoraSettings(),
        LoraSettings(lora_alpha=7.0),
        LoraSettings(use_rslora=True),
        LoraSettings(lora_alpha=3, use_rslora=True),
    ],
    ids=["default", "alpha", "rslora", "both"],
)
@pytest.mark.parametrize(("rank", "slots"), [(4, 4), (2, 4), (1, 6)])
def test_the_model_computes_with_the_whole_hand_out(settings, rank, slots, build, tiny_bert, handout):
    manifest, model, lora = build(settings=settings)
    adapter = handout(manifest, slots, size=0.2)
    lora.load(adapter, rank, Layout.of(manifest))
    with torch.no_grad():
        found = model.backbone(**BATCH).last_hidden_state
        expected = dense_model(tiny_bert, manifest, adapter)(**BATCH).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@given(st.floats(0.1, 64), st.booleans(), st.integers(1, 64))
def test_the_scaling_is_pefts(alpha, rslora, rank):
    expected = alpha / math.sqrt(rank) if rslora else alpha / rank
    assert LoraSettings(lora_alpha=alpha, use_rslora=rslora).scaling(rank) == pytest.approx(expected)
    assert LoraSettings(use_rslora=rslora).scaling(rank) == pytest.approx(2.0)


def test_peft_agrees_about_the_scaling(build, handout):
    settings = LoraSettings(lora_alpha=5, use_rslora=True)
    manifest, _, lora = build(settings=settings)
    lora.load(handout(manifest, 3), 3, Layout.of(manifest))
    layers = [m for m in lora.model.modules() if isinstance(m, LoraLayer)]
    assert len(layers) == len(manifest.low_rank)
    assert {layer.scaling["default"] for layer in layers} == {settings.scaling(3)}


def test_loading_changes_nothing_by_itself(build, handout):
    manifest, _, lora = build(task=LABELS)
    lora.load(handout(manifest, 4, size=0.2), 2, Layout.of(manifest))
    change = lora.change(Layout.of(manifest))
    assert not change.slots.any()
    assert not any(value.any() for value in change.dense.values())


def test_the_change_is_scale_free_and_in_wire_order(build, handout):
    manifest, _, lora = build(settings=LoraSettings(lora_alpha=12))
    layout = Layout.of(manifest)
    lora.load(handout(manifest, 3, size=0.2), 3, layout)
    rng = np.random.default_rng(3)
    expected = layout.zeros(3)
    for module in manifest.low_rank:
        layer = lora.model.base_model.model.get_submodule(module.name)
        for weight, factor in zip(
            (layer.lora_B["default"].weight, layer.lora_A["default"].weight),
            layout.factors(expected.slots, module.name),
            strict=True,
        ):
            step = rng.standard_normal(factor.shape).astype(np.float32)
            weight.data += torch.from_numpy(step)
            factor[:] = step * (4.0 if weight is layer.lora_B["default"].weight else 1.0)
    np.testing.assert_allclose(lora.change(layout).slots, expected.slots, atol=1e-5)


def test_exactly_what_is_returned_requires_gradients(build, handout):
    manifest, model, lora = build(task=LABELS)
    for rank, slots in ((2, 2), (2, 2), (2, 4), (1, 4)):
        parameters = lora.load(handout(manifest, slots), rank, Layout.of(manifest))
        assert len(parameters) == 2 * len(manifest.low_rank) + len(manifest.dense)
        assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}


def test_only_the_first_slots_are_trained(build, handout):
    manifest, model, lora = build()
    parameters = lora.load(handout(manifest, 6, size=0.2), 2, Layout.of(manifest))
    assert {id(p) for p in parameters} == {id(p) for p in lora.model.parameters() if p.requires_grad}
    assert sum(p.numel() for p in parameters) == 2 * Layout.of(manifest).width
    assert {p.dtype for p in parameters} == {torch.float32}
    model.pooled(BATCH).sum().backward()
    frozen = [p for name, p in lora.model.named_parameters() if "residual" in name]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_what_is_not_active_stays_frozen_and_out_of_the_update(build, handout):
    manifest, _, lora = build(task=LABELS)
    first = manifest.low_rank[0]
    active = Layout.of(manifest, [first.name, "classifier.bias"])
    parameters = lora.load(handout(manifest, 4, size=0.2), 4, active)
    assert sorted(tuple(p.shape) for p in parameters) == [(2,), (4, first.in_features), (first.out_features, 4)]
    change = lora.change(active)
    assert change.slots.shape == (4, first.in_features + first.out_features)
    assert list(change.dense) == ["classifier.bias"]


@pytest.mark.parametrize("frozen", list(Factor))
def test_a_frozen_factor_has_no_gradient_and_is_not_in_the_update(build, handout, frozen):
    manifest, model, lora = build()
    active = Layout.of(manifest, frozen=(frozen,))
    parameters = lora.load(handout(manifest, 4, size=0.2), 4, active)
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
    sent = [m.out_features if frozen is Factor.A else m.in_features for m in manifest.low_rank]
    assert sum(p.numel() for p in parameters) == 4 * sum(sent)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.5
    change = lora.change(active)
    assert change.slots.shape == (4, sum(sent))
    np.testing.assert_allclose(change.slots, 0.5 * (2.0 if frozen is Factor.A else 1.0), atol=1e-6)
    lora.load(handout(manifest, 4), 4, Layout.of(manifest))
    assert sum(p.requires_grad for p in model.parameters()) == 2 * len(manifest.low_rank)


def test_the_rank_may_change_between_assignments(build, tiny_bert, handout):
    manifest, model, lora = build()
    for rank, slots in ((4, 4), (2, 5), (2, 5), (8, 8), (2, 2)):
        adapter = handout(manifest, slots, size=0.2)
        parameters = lora.load(adapter, rank, Layout.of(manifest))
        assert sum(p.numel() for p in parameters) == rank * Layout.of(manifest).width
        with torch.no_grad():
            expected = dense_model(tiny_bert, manifest, adapter)(**BATCH).last_hidden_state
            torch.testing.assert_close(model.backbone(**BATCH).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


def test_dense_tensors_are_initializer_plus_offset(build, handout):
    manifest, model, lora = build(task=LABELS)
    adapter = handout(manifest, 2, size=0.5)
    lora.load(adapter, 2, Layout.of(manifest))
    for tensor in manifest.dense:
        expected = tensor.initializer.values(tensor.shape) + adapter.dense[tensor.name]
        np.testing.assert_array_equal(model.owner(tensor.name)[1].detach().numpy(), expected)


def test_a_head_trains_in_fp32_on_a_bf16_base(build, handout):
    manifest, model, lora = build(task=LABELS, quantization=Quantization.BF16)
    parameters = lora.load(handout(manifest, 2, size=0.1), 2, Layout.of(manifest))
    assert {p.dtype for p in parameters} == {torch.float32}
    logits = model.logits(BATCH)
    logits.sum().backward()
    assert all(p.grad is not None for p in parameters)


def test_a_rank_above_the_hand_outs_slots_is_refused(build, handout):
    manifest, _, lora = build()
    with pytest.raises(AggregatorError, match="2 slots, the assignment trains 4"):
        lora.load(handout(manifest, 2), 4, Layout.of(manifest))


def test_a_module_that_the_model_lacks_is_named(build, handout):
    manifest, model, _ = build()
    wrong = Manifest(
        base=manifest.base,
        task=manifest.task,
        rank_max=4,
        low_rank=(manifest.low_rank[0], LowRankModule(name="encoder.none", out_features=4, in_features=4)),
    )
    with pytest.raises(BaseModelError, match=r"encoder\.none"):
        LoraTuner(model, wrong, LoraSettings()).load(handout(wrong, 2), 2, Layout.of(wrong))


def test_a_module_of_another_width_is_refused(build, handout):
    manifest, model, _ = build()
    name = manifest.low_rank[0].name
    wrong = Manifest(
        base=manifest.base,
        task=manifest.task,
        rank_max=4,
        low_rank=(LowRankModule(name=name, out_features=49, in_features=48),),
    )
    with pytest.raises(BaseModelError, match=r"\(49, 2\) in the manifest, \(48, 2\) in the model"):
        LoraTuner(model, wrong, LoraSettings()).load(handout(wrong, 2), 2, Layout.of(wrong))


def test_an_unknown_method_is_refused(build):
    manifest, _, _ = build()
    with pytest.raises(ConfigError, match=r"tunes by 'magic' \(method: expected one of .*lora"):
        method_of(replace(manifest, method="magic"))
    with pytest.raises(ConfigError, match="there is no setting 'width'; it has target_modules"):
        method_of(replace(manifest, method_options={"width": 4}))
