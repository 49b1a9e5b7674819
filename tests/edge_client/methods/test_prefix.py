"""Prefixes against attention computed by hand, against the keys and values of real text, and against PEFT's own."""

import hashlib

import numpy as np
import peft
import pytest
import torch
import transformers

from edge_client.errors import BaseModelError, ConfigError
from edge_client.methods import Subject
from edge_client.methods.prefix import Prefix
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.quiet import quiet_loading
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout
from tests.edge_client.methods.tuned import TEXT, batch, bert, gpt2, llama, opt, roberta, tuned

LENGTH = 5
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16)
POOLED = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16, pooling=Pooling.MEAN)
MODELS = {
    "bert": (lambda: bert(add_pooling_layer=False), POOLED),
    "bert-head": (lambda: bert(transformers.BertForSequenceClassification), LABELS),
    "roberta-head": (lambda: roberta(transformers.RobertaForSequenceClassification), LABELS),
    "llama": (llama, TEXT),
    "llama-head": (lambda: llama(transformers.LlamaForSequenceClassification), LABELS),
    "gpt2": (gpt2, TEXT),
    "gpt2-head": (lambda: gpt2(transformers.GPT2ForSequenceClassification), LABELS),
}


@pytest.fixture(params=MODELS)
def model_and_task(request):
    build, task = MODELS[request.param]
    return build(), task


def test_a_layer_attends_to_prefix_and_text_as_float64_arithmetic_does():
    found = tuned(bert(add_pooling_layer=False), Prefix(length=LENGTH), POOLED)
    layer = found.model.backbone.encoder.layer[1].attention.self
    seen = {}
    layer.register_forward_hook(lambda _, args, output: seen.update(states=args[0], output=output[0]))
    texts = batch(7, 4)
    with torch.no_grad():
        found.model.pooled(texts)

    def heads(values):
        return values.unflatten(-1, (4, 12)).transpose(-3, -2)

    states = seen["states"].double()
    query, key, value = (
        heads(torch.nn.functional.linear(states, part.weight.double(), part.bias.double()))
        for part in (layer.query, layer.key, layer.value)
    )
    keys, values = heads(found.loaded("prefix.1").double())
    key, value = (torch.cat((prefix.expand(2, -1, -1, -1), own), 2) for prefix, own in ((keys, key), (values, value)))
    scores = query @ key.transpose(-1, -2) / 12**0.5
    scores[1, :, :, LENGTH + 4 :] = -torch.inf
    expected = (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2)
    real = texts["attention_mask"].bool()
    torch.testing.assert_close(seen["output"].double()[real], expected[real], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("build", [llama, gpt2, opt])
def test_keys_and_values_of_a_text_are_a_prefix_that_stands_for_the_text(build):
    """Positions, rotations and masks are right if a real beginning of a text can be replaced by its cache."""
    found = tuned(build(), Prefix(length=LENGTH))
    plain = build()
    ids = batch(LENGTH + 8)["input_ids"]
    with torch.no_grad():
        cache = plain(ids[:, :LENGTH], use_cache=True).past_key_values
        whole = plain(ids).logits
        for layer, prefix in zip(cache.layers, found.model.backbone.prefix, strict=True):
            prefix.copy_(torch.stack((layer.keys[0], layer.values[0])).transpose(1, 2).flatten(-2))
        rest = {"input_ids": ids[:, LENGTH:], "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
        torch.testing.assert_close(found.model.logits(rest), whole[:, LENGTH:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("build", "kind", "types"),
    [
        (lambda: bert(add_pooling_layer=False), "FEATURE_EXTRACTION", False),
        (lambda: bert(transformers.BertForSequenceClassification), "SEQ_CLS", True),
        (lambda: roberta(transformers.RobertaForSequenceClassification), "SEQ_CLS", False),
        (llama, "CAUSAL_LM", False),
        (gpt2, "CAUSAL_LM", False),
    ],
)
def test_pefts_prefix_tuning_of_these_values_gives_the_same(build, kind, types, tmp_path):
    """The adapter is saved under PEFT's names and loaded by PEFT from there."""
    found = tuned(build(), Prefix(length=LENGTH))
    texts = batch(7, 4, types=types)
    stacked = torch.stack([found.loaded(f"prefix.{layer}") for layer in range(2)])  # [layers, 2, length, width]
    width = stacked.shape[-1]
    config = peft.PrefixTuningConfig(
        task_type=kind,
        num_virtual_tokens=LENGTH,
        num_layers=2,
        token_dim=width,
        num_attention_heads=width // 12,
        inference_mode=True,
    )
    config.save_pretrained(tmp_path)
    named = {"prompt_embeddings": stacked.permute(2, 0, 1, 3).reshape(LENGTH, -1).contiguous()}
    if kind == "SEQ_CLS":
        head = {name: value for name, value in found.model.backbone.state_dict().items() if "classifier" in name}
        named |= {f"base_model.{name}": value for name, value in head.items()}
    from safetensors.torch import save_file

    save_file(named, tmp_path / "adapter_model.safetensors")
    with quiet_loading():
        theirs = peft.PeftModel.from_pretrained(build(), tmp_path).eval()
    with torch.no_grad():
        ours, expected = found.model.backbone(**texts), theirs(**texts)
    real = texts["attention_mask"].bool()
    pick = (lambda out: out.last_hidden_state[real]) if kind == "FEATURE_EXTRACTION" else (lambda out: out.logits)
    if kind == "CAUSAL_LM":
        pick = lambda out: out.logits[real]  # noqa: E731
    torch.testing.assert_close(pick(ours), pick(expected), atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing(model_and_task):
    model, task = model_and_task
    found = tuned(model, Prefix(length=LENGTH), task)
    texts = batch(7, 4)
    alone = {name: value[1:, :4] for name, value in texts.items()}
    with torch.no_grad():
        together, single = found.model.logits(texts)[1:], found.model.logits(alone)
    if task is TEXT:
        together = together[:, :4]
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)


def test_every_layers_prefix_has_a_gradient_and_nothing_else_has(model_and_task):
    model, task = model_and_task
    found = tuned(model, Prefix(length=LENGTH), task)
    found.model.train()
    parameters = found.tuner.load(found.handout, 1, found.layout)
    assert [tuple(p.shape) for p in parameters] == [tensor.shape for tensor in found.layout.dense]
    assert {id(p) for p in parameters} == {id(p) for p in found.model.parameters() if p.requires_grad}
    found.model.logits(batch(7, 4)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in parameters)


def test_single_layers_can_be_made_active_by_name():
    found = tuned(llama(), Prefix(length=LENGTH))
    only = Layout((), tuple(tensor for tensor in found.layout.dense if tensor.name == "prefix.1"))
    (parameter,) = found.tuner.load(found.handout, 1, only)
    found.model.logits(batch(7, 4)).square().sum().backward()
    with torch.no_grad():
        parameter += 0.5
    change = found.tuner.change(only)
    assert list(change.dense) == ["prefix.1"]
    np.testing.assert_allclose(change.dense["prefix.1"], 0.5, atol=1e-6)


@pytest.mark.parametrize(("build", "task"), [(llama, TEXT), (lambda: bert(add_pooling_layer=False), POOLED)])
def test_reparametrised_the_hand_out_is_where_training_starts_and_the_prefix_is_what_is_sent(build, task):
    plain = tuned(build(), Prefix(length=LENGTH), task)
    found = tuned(build(), Prefix(length=LENGTH, reparametrised=True), task)
    texts = batch(7, 4)
    assert torch.equal(found.model.logits(texts), plain.model.logits(texts))
    assert not any(np.any(value) for value in found.tuner.change(found.layout).dense.values())
    parameters = found.tuner.load(found.handout, 1, found.layout)
    assert {id(p) for p in parameters} == {id(p) for p in found.model.parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    found.model.logits(texts).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in parameters)
    optimizer.step()
    change = found.tuner.change(found.layout)
    assert {name: value.shape for name, value in change.dense.items()} == {
        tensor.name: tensor.shape for tensor in found.layout.dense
    }
    trained = found.model.logits(texts)
    assert not torch.equal(trained, plain.model.logits(texts))
    moved = type(found.handout)(
        {name: value + change.dense[name] for name, value in found.handout.dense.items()}, found.handout.slots
    )
    plain.tuner.load(moved, 1, plain.layout)
    torch.testing.assert_close(plain.model.logits(texts), trained, atol=1e-5, rtol=1e-4)


def test_reparametrised_the_network_is_fresh_for_every_hand_out_and_the_same_for_the_same():
    found = tuned(llama(), Prefix(length=LENGTH, reparametrised=True))

    def start(scale: float) -> str:
        dense = {name: value * np.float32(scale) for name, value in found.handout.dense.items()}
        parameters = found.tuner.load(type(found.handout)(dense, found.handout.slots), 1, found.layout)
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in parameters)).hexdigest()

    assert start(1.0) == start(1.0)
    assert start(1.0) != start(2.0)


def test_reparametrised_only_active_layers_change_and_an_installed_prefix_has_no_network():
    found = tuned(llama(), Prefix(length=LENGTH, reparametrised=True))
    only = Layout((), tuple(tensor for tensor in found.layout.dense if tensor.name == "prefix.1"))
    parameters = found.tuner.load(found.handout, 1, only)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.01
    assert list(found.tuner.change(only).dense) == ["prefix.1"]
    assert np.any(found.tuner.change(only).dense["prefix.1"])
    assert found.tuner.load(found.handout, 1, Layout((), ())) == []
    assert {name for name, _ in found.model.backbone.named_parameters() if "prefix" in name} == {"prefix.0", "prefix.1"}


@pytest.mark.parametrize("build", [llama, gpt2])
def test_generation_sees_the_prefix_at_every_step(build):
    """Against the scores of a full pass without a cache of the text, word after word."""
    found = tuned(build(), Prefix(length=LENGTH))
    with torch.no_grad():
        given = found.model.backbone.generate(
            **batch(6, 6),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        ids = given.sequences[:, :-1]
        scores = found.model.logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[:, 5:]
    torch.testing.assert_close(torch.stack(given.logits, 1), scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quantization", ["nf4", "bf16"])
@pytest.mark.parametrize("reparametrised", [False, True])
@pytest.mark.parametrize(
    ("folder", "task"), [("tiny_bert", LABELS), ("tiny_llama", Task(kind=TaskKind.CAUSAL_LM, max_length=16))]
)
def test_a_device_trains_it_on_a_quantised_base(request, folder, task, quantization, reparametrised, assign, handout):
    manifest = write_manifest(
        request.getfixturevalue(folder), task, method=Prefix(length=LENGTH, reparametrised=reparametrised)
    )
    rows = [{"sentence": "good film", "label": 1}, {"sentence": "bad w1 w2", "label": 0}]
    if task.kind is TaskKind.CAUSAL_LM:
        rows = [{"text": "good film a b c"}, {"text": "bad w1 w2"}]
    trainer = TorchTrainer(request.getfixturevalue(folder), rows, quantization=quantization, device="cpu")
    trainer.info(manifest)
    given = handout(manifest, 1, size=0.1)
    result = trainer.run(
        assign(1, batch_size=2, max_steps=2, learning_rate=1e-2),
        given,
        cancelled=lambda: False,
        progress=lambda _: None,
    )
    assert {name: value.shape for name, value in result.update.dense.items()} == {
        tensor.name: tensor.shape for tensor in manifest.dense
    }
    for name, value in result.update.dense.items():
        assert value.dtype == np.float32
        assert np.all(np.isfinite(value)), name
        assert np.any(value), name


def test_devices_that_share_a_base_give_the_bits_of_devices_that_do_not(tiny_bert, assign, handout):
    manifest = write_manifest(tiny_bert, LABELS, method=Prefix(length=LENGTH, reparametrised=True))
    held = {"quantization": Quantization.FP32, "device": "cpu"}
    base = SharedBase(BaseSettings(model=tiny_bert, **held))
    data = [[{"sentence": f"good w{device}", "label": 1}, {"sentence": "bad w1 w2", "label": 0}] for device in range(2)]

    def trained(trainers):
        for trainer in trainers:
            trainer.info(manifest)
        given = handout(manifest, 1, size=0.1)
        calls = {"cancelled": lambda: False, "progress": lambda _: None}
        return [trainer.run(assign(1, batch_size=2, seed=4), given, **calls).update.dense for trainer in trainers]

    shared = trained([TorchTrainer.sharing(base, rows) for rows in data])
    alone = trained([TorchTrainer(tiny_bert, rows, **held) for rows in data])
    for one, other in zip(shared, alone, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in manifest.names)
    assert not np.array_equal(shared[0]["prefix.0"], shared[1]["prefix.0"])


def declared(backbone, length, task=LABELS):
    return Prefix(length=length).declare(Subject(backbone=backbone, task=task, rank_max=1, head=(), seed=0)).dense


def test_counts_are_those_of_the_papers_models():
    """FedPETuning's 64 tokens on RoBERTa-base: 1.77 M with the head; FedPepTAO's 20 on RoBERTa-large: 3.93 MB."""
    with torch.device("meta"):
        base = transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(max_position_embeddings=514, num_labels=2)
        )
        large = transformers.RobertaModel(
            transformers.RobertaConfig(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                max_position_embeddings=514,
            )
        )
    head = sum(p.numel() for p in base.classifier.parameters())
    assert head + sum(tensor.size for tensor in declared(base, 64)) == 592_130 + 1_179_648
    assert sum(4 * tensor.size for tensor in declared(large, 20)) == 3_932_160
    assert sum(4 * tensor.size for tensor in declared(large, 20)[:12]) == 1_966_080


def test_every_layer_starts_with_values_of_its_own():
    tensors = declared(llama(), LENGTH)
    values = [tensor.initializer.values(tensor.shape) for tensor in tensors]
    assert [tensor.name for tensor in tensors] == ["prefix.0", "prefix.1"]
    assert not np.any(values[0] == values[1])


def test_models_that_cannot_have_a_prefix_are_refused():
    vit = transformers.ViTModel(
        transformers.ViTConfig(**SMALL, image_size=8, patch_size=4),
    )
    distilbert = transformers.DistilBertModel(
        transformers.DistilBertConfig(dim=48, n_heads=4, n_layers=1, hidden_dim=80)
    )
    t5 = transformers.T5Model(transformers.T5Config(d_model=48, d_kv=12, d_ff=80, num_layers=1, num_heads=4))
    for backbone in (vit, distilbert):
        with pytest.raises(ConfigError, match="takes no 'past_key_values'"):
            declared(backbone, LENGTH)
    with pytest.raises(ConfigError, match="has an encoder and a decoder"):
        declared(t5, LENGTH)
    mamba = transformers.JambaModel(
        transformers.JambaConfig(**SMALL, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1)
    )
    with pytest.raises(ConfigError, match="layers without keys and values"):
        declared(mamba, LENGTH)


SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}


@pytest.mark.parametrize(("build", "room"), [(bert, 40), (roberta, 39), (llama, 40), (gpt2, 40)])
def test_a_prefix_takes_positions_from_the_text(build, room):
    """RoBERTa's positions begin behind its padding token's."""
    declared(build(), room - LABELS.max_length)
    with pytest.raises(ConfigError, match=f"has {room} positions, a text takes up to 16 of them"):
        declared(build(), room - LABELS.max_length + 1)


def test_a_text_of_full_length_fits_behind_the_longest_prefix():
    for build, room in ((roberta, 39), (gpt2, 40)):
        found = tuned(build(), Prefix(length=room - TEXT.max_length))
        with torch.no_grad():
            found.model.backbone(**batch(TEXT.max_length, 3))


@pytest.mark.parametrize(
    "options", [{"length": 0}, {"length": -3}, {"length": 2.5}, {"length": True}, {"reparametrised": 1}]
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Prefix(**options)


def test_gradient_checkpointing_which_would_drop_the_prefix_is_refused():
    found = tuned(llama(), Prefix(length=LENGTH))
    found.model.backbone.activation_checkpointing_enable()
    found.model.train()
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        found.model.logits(batch(3))


def test_a_model_takes_one_prefix_only():
    model = llama()
    tuned(model, Prefix(length=LENGTH))
    with pytest.raises(BaseModelError, match="load the base model anew"):
        tuned(model, Prefix(length=LENGTH))
