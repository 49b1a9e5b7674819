"""Bottleneck adapters at mixed widths: what is declared, where it sits in a model, and what a device trains."""

import copy

import numpy as np
import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from edge_client.errors import ConfigError
from edge_client.methods import Subject, method_of, read_method
from edge_client.methods.adapter import Adapter
from edge_client.methods.scaling import LoraSettings
from edge_client.model.base_model import load_backbone
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.task_model import TaskModel
from protocol.initializers import Distribution
from protocol.manifest import Manifest, Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

WIDTHS = (8, 16, 64)
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.MEAN)
CAUSAL_LM = Task(kind=TaskKind.CAUSAL_LM)
PICTURES = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.CLS)
TEXTS = {"input_ids": torch.arange(4, 20).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
IMAGES = {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
MODELS = {
    "tiny_bert": (LABELS, TEXTS),
    "tiny_llama": (CAUSAL_LM, TEXTS),
    "tiny_gpt2": (CAUSAL_LM, TEXTS),
    "tiny_vit": (PICTURES, IMAGES),
}
PROJECTIONS = {
    "tiny_bert": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "tiny_llama": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
    "tiny_gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "tiny_vit": ("layers.{}.attention.o_proj", "layers.{}.mlp.fc2"),
}
"""What each architecture adds to its residual: after attention, and after the feed-forward network."""
HELD = [(name, Quantization.FP32) for name in sorted(MODELS)]
HELD += [("tiny_bert", Quantization.BF16), ("tiny_gpt2", Quantization.INT8), ("tiny_llama", Quantization.NF4)]
ENCODERS = ("Bert", "DistilBert", "Electra", "MPNet", "Roberta", "XLMRoberta")
DECODERS = ("GPT2", "Llama", "Mistral", "Qwen2", "Qwen3")
HIDDEN, SITES = 48, 4


@pytest.fixture(params=sorted(MODELS))
def model(request):
    """Folder, task and a batch of every kind of model."""
    return request.getfixturevalue(request.param), *MODELS[request.param]


def written(folder, task, **settings):
    return write_manifest(folder, task, method=Adapter(**settings), rank_max=64)


def loaded(folder, manifest, quantization=Quantization.FP32):
    backbone = load_backbone(
        Checkpoint.find(folder),
        manifest,
        quantization=quantization,
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
    )
    return TaskModel(backbone, manifest.task).eval()


def tuner_of(model, manifest):
    return method_of(manifest).tuner(model, manifest, LoraSettings())


def parameters_of(manifest, width):
    """Parameters that a device of a width trains."""
    active = set(manifest.active(width))
    return sum(tensor.size for tensor in manifest.dense if tensor.name in active)


def subject(backbone, rank_max=64):
    return Subject(backbone=backbone, task=LABELS, rank_max=rank_max, head=(), seed=0)


def on_meta(architecture, config):
    with torch.device("meta"):
        return architecture(config)


class TestDeclaring:
    @pytest.mark.parametrize("widths", [(64,), WIDTHS])
    def test_houlsby_on_roberta_has_the_published_number_of_parameters(self, widths):
        """FedPETuning gives those of 64 and 16 units, with its head; the blocks that they are cut into add nothing."""
        roberta = on_meta(transformers.RobertaForSequenceClassification, transformers.RobertaConfig(num_labels=2))
        head = sum(parameter.numel() for parameter in roberta.classifier.parameters())
        tensors = Adapter(widths=widths).declare(subject(roberta)).dense
        counts = {width: sum(t.size for t in tensors if t.rank_min <= width) for width in widths}
        expected = {8: 905_666, 16: 1_200_770, 64: 2_971_394}
        assert {width: head + count for width, count in counts.items()} == {width: expected[width] for width in widths}

    def test_pfeiffer_has_the_half_behind_the_feed_forward_network(self, tiny_bert):
        houlsby = written(tiny_bert, LABELS, widths=WIDTHS)
        pfeiffer = written(tiny_bert, LABELS, widths=WIDTHS, placement="pfeiffer")
        assert set(pfeiffer.names) == {name for name in houlsby.names if ".attention." not in name}
        head = 2 * HIDDEN + 2
        assert 2 * (parameters_of(pfeiffer, 64) - head) == parameters_of(houlsby, 64) - head

    def test_a_device_trains_the_blocks_within_its_width(self, model):
        folder, task, _ = model
        manifest = written(folder, task, widths=WIDTHS)
        head = sum(tensor.size for tensor in manifest.dense if "adapter" not in tensor.name)
        for rank, width in ((1, 8), (8, 8), (15, 8), (16, 16), (63, 16), (64, 64)):
            adapter = SITES * (2 * width * HIDDEN + width + HIDDEN)
            assert parameters_of(manifest, rank) == head + adapter

    def test_without_widths_all_devices_train_one_bottleneck_of_the_highest_rank(self, tiny_bert):
        manifest = written(tiny_bert, LABELS)
        assert manifest.active(1) == manifest.names
        assert parameters_of(manifest, 1) == parameters_of(written(tiny_bert, LABELS, widths=(64,)), 64)

    def test_every_tensor_starts_with_values_of_its_own(self, tiny_bert):
        """Units that start alike stay alike: blocks of one shape must not be copies of each other."""
        fresh = [t for t in written(tiny_bert, LABELS, widths=(8, 16)).dense if t.name.endswith("down.weight")]
        values = [tensor.initializer.values(tensor.shape) for tensor in fresh]
        assert len(values) == 2 * SITES
        assert {value.shape for value in values} == {(8, HIDDEN)}
        assert len({value.tobytes() for value in values}) == len(values)
        assert np.std(values) == pytest.approx(1 / np.sqrt(3 * HIDDEN), rel=0.05)

    def test_what_is_no_down_weight_starts_at_zero(self, tiny_bert):
        rest = [t for t in written(tiny_bert, LABELS).dense if "adapter" in t.name and not t.name.endswith("n.weight")]
        assert {tensor.initializer.distribution for tensor in rest} == {Distribution.ZEROS}

    @pytest.mark.parametrize("name", sorted(MODELS))
    def test_adapters_follow_what_is_added_to_the_residual(self, name, request):
        folder, task = request.getfixturevalue(name), MODELS[name][0]
        for placement, places in (("houlsby", PROJECTIONS[name]), ("pfeiffer", PROJECTIONS[name][1:])):
            declared = [tensor.name for tensor in written(folder, task, placement=placement).dense]
            found = {tensor.partition(".adapter.")[0] for tensor in declared if ".adapter." in tensor}
            assert found == {place.format(layer) for place in places for layer in range(2)}

    @pytest.mark.parametrize("name", [*ENCODERS, *DECODERS, "ViT"])
    def test_every_family_has_two_projections_a_layer(self, name):
        config = getattr(transformers, f"{name}Config")()
        config.num_hidden_layers = 3
        backbone = on_meta(getattr(transformers, f"{name}Model"), config)
        names = [tensor.name for tensor in Adapter().declare(subject(backbone)).dense]
        projections = {name.partition(".adapter.")[0] for name in names}
        assert len(projections) == 6
        for projection in projections:
            module = backbone.get_submodule(projection)
            outputs = module.weight.shape[1] if isinstance(module, Conv1D) else module.out_features
            assert outputs == config.hidden_size

    @pytest.mark.parametrize(
        ("architecture", "config"),
        [
            (transformers.OPTModel, transformers.OPTConfig(num_hidden_layers=1)),
            (transformers.ResNetModel, transformers.ResNetConfig(depths=[1], hidden_sizes=[8])),
        ],
    )
    def test_an_unknown_family_is_named(self, architecture, config):
        with pytest.raises(ConfigError, match=rf"expected a model of type bert, .*vit, got '{config.model_type}'"):
            Adapter().declare(subject(on_meta(architecture, config)))

    def test_a_width_above_the_highest_rank_is_refused(self, tiny_bert):
        with pytest.raises(ConfigError, match="wider than its rank_max 16, got 64: raise rank_max"):
            write_manifest(tiny_bert, LABELS, method=Adapter(widths=WIDTHS), rank_max=16)

    @pytest.mark.parametrize("widths", [(), (0, 8), (-8,), (8, 8), (16, 8), (8.0,), (True,), ("8", "16"), 8, [8]])
    def test_widths_that_do_not_ascend_are_refused(self, widths):
        with pytest.raises(ConfigError, match="widths: expected a tuple of ascending whole numbers above 0"):
            read_method("adapter", {"widths": widths})

    def test_all_wrong_settings_are_named_at_once(self):
        with pytest.raises(ConfigError) as caught:
            read_method("adapter", {"widths": (8, 8), "placement": "top", "activation": "tanh"})
        assert "widths" in str(caught.value)
        assert "placement: expected one of houlsby, pfeiffer, got 'top'" in str(caught.value)
        assert "activation: expected one of gelu, relu, silu, got 'tanh'" in str(caught.value)

    def test_a_manifest_brings_the_settings_to_the_devices(self, tiny_bert):
        method = Adapter(widths=WIDTHS, placement="pfeiffer", activation="relu")
        manifest = write_manifest(tiny_bert, LABELS, method=method, rank_max=64)
        assert method_of(Manifest.from_json(manifest.to_json())) == method


class TestTuning:
    @pytest.mark.parametrize(("model", "quantization"), HELD, indirect=["model"])
    def test_a_fresh_adapter_changes_nothing_and_every_block_of_it_learns(self, model, quantization, handout):
        folder, task, batch = model
        manifest = written(folder, task, widths=WIDTHS)
        tuned, layout = loaded(folder, manifest, quantization), Layout.of(manifest)
        if tuned.head is not None:  # as the tuner will start it
            tuned.head.weight.data.copy_(torch.from_numpy(manifest.dense[0].initializer.values((2, HIDDEN))))
            tuned.head.bias.data.zero_()
        with torch.no_grad():
            before = tuned.logits(batch)
        tuner = tuner_of(tuned, manifest)
        parameters = tuner.load(handout(manifest, 0), 64, layout)
        assert {parameter.dtype for parameter in parameters} == {torch.float32}
        with torch.no_grad():
            assert torch.equal(tuned.logits(batch), before)
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        for step in range(2):
            optimizer.zero_grad()
            tuned.logits(batch).pow(2).mean().backward()
            if step == 0:
                fresh = [t.name for t in manifest.dense if t.name.endswith((".up.weight", ".up.bias"))]
                assert all(tuned.owner(name)[1].grad.any() for name in fresh)
            optimizer.step()
        assert all(np.isfinite(value).all() and value.any() for value in tuner.change(layout).dense.values())

    def test_exactly_the_blocks_of_a_width_have_gradients_and_travel(self, tiny_bert, handout):
        manifest = written(tiny_bert, LABELS, widths=WIDTHS)
        tuned = loaded(tiny_bert, manifest)
        tuner = tuner_of(tuned, manifest)
        for width in (8, 64, 16):
            active = Layout.of(manifest, manifest.active(width))
            parameters = tuner.load(handout(manifest, 0, size=0.1), width, active)
            assert sum(parameter.numel() for parameter in parameters) == parameters_of(manifest, width)
            tuned.logits(TEXTS).pow(2).mean().backward()
            with_gradient = {id(p) for p in tuned.parameters() if p.grad is not None}
            assert (
                with_gradient == {id(p) for p in parameters} == {id(p) for p in tuned.parameters() if p.requires_grad}
            )
            assert tuple(tuner.change(active).dense) == manifest.active(width)

    def test_devices_of_all_widths_compute_the_same_function(self, tiny_bert, handout):
        manifest = written(tiny_bert, LABELS, widths=WIDTHS)
        tuned = loaded(tiny_bert, manifest)
        tuner, found = tuner_of(tuned, manifest), []
        for width in WIDTHS:
            tuner.load(handout(manifest, 0, size=0.1), width, Layout.of(manifest, manifest.active(width)))
            found.append(tuned.logits(TEXTS).detach())
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])

    def test_an_adapter_changes_what_its_projection_gives(self, model, handout):
        """Where every unit is active, ReLU is linear: the adapter is a change of the projection's own weights."""
        folder, task, batch = model
        manifest = written(folder, task, widths=(2, 3), activation="relu")
        tuned = loaded(folder, manifest)
        plain = copy.deepcopy(tuned)
        tuner_of(tuned, manifest).load(handout(manifest, 0), 3, Layout.of(manifest))
        adapted = [(name, m) for name, m in tuned.backbone.named_modules() if "adapter" in dict(m.named_children())]
        assert len(adapted) == SITES
        before = plain.backbone(**batch)[0]
        generator = torch.Generator().manual_seed(0)
        for name, module in adapted:
            total = torch.eye(HIDDEN)
            for block in module.adapter.blocks:
                block.down.weight.data = 0.1 * torch.randn(block.down.weight.shape, generator=generator)
                block.up.weight.data = 0.3 * torch.randn(block.up.weight.shape, generator=generator)
                block.down.bias.data.fill_(20.0)
                module.adapter.blocks[0].up.bias.data -= block.up.weight.data @ block.down.bias.data
                total += block.up.weight.data @ block.down.weight.data
            projection = plain.backbone.get_submodule(name)
            transposed = isinstance(projection, Conv1D)
            projection.weight.data = projection.weight.data @ total.T if transposed else total @ projection.weight.data
            if projection.bias is not None:
                projection.bias.data = total @ projection.bias.data
        found, expected = (each.backbone(**batch)[0] for each in (tuned, plain))
        assert (found - expected).norm() < 1e-3 * (expected - before).norm()
