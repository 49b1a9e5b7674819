import pytest
import torch
import transformers

from edge_client.errors import BaseModelError, ConfigError
from edge_client.methods.lora import Lora
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.manifest_writer import write_manifest
from protocol.initializers import Distribution
from protocol.manifest import Manifest, Pooling, Quantization, Task, TaskKind

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"))
LANGUAGE = Task(kind=TaskKind.CAUSAL_LM)


def test_every_linear_layer_of_the_body_is_tuned_but_an_unused_pooler(tiny_bert):
    manifest = write_manifest(tiny_bert, Task(kind=TaskKind.EMBEDDING, pooling=Pooling.MEAN))
    model = transformers.BertModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    linear = {n: (m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {m.name: (m.out_features, m.in_features) for m in manifest.low_rank} == linear
    assert manifest.dense == ()
    assert manifest.base.architecture == "BertModel"


def test_a_fresh_head_has_an_initializer(tiny_bert, tiny_llama):
    bert = {tensor.name: tensor for tensor in write_manifest(tiny_bert, LABELS).dense}
    assert {name: tensor.shape for name, tensor in bert.items()} == {
        "classifier.weight": (2, 48),
        "classifier.bias": (2,),
    }
    assert bert["classifier.weight"].initializer.distribution is Distribution.NORMAL
    assert bert["classifier.bias"].initializer.distribution is Distribution.ZEROS
    llama = write_manifest(tiny_llama, LABELS)
    assert [tensor.name for tensor in llama.dense] == ["score.weight"]
    assert "score" not in {module.name for module in llama.low_rank}


def test_a_pooled_classifier_gets_a_linear_head_of_our_own(tiny_bert):
    task = Task(kind=TaskKind.REGRESSION, pooling=Pooling.MEAN)
    manifest = write_manifest(tiny_bert, task)
    assert manifest.base.architecture == "BertModel"
    assert [(t.name, t.shape) for t in manifest.dense] == [("classifier.weight", (1, 48)), ("classifier.bias", (1,))]


def test_a_head_that_the_checkpoint_has_starts_there(tiny_bert, tmp_path):
    model = transformers.BertForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    model.save_pretrained(tmp_path)
    Checkpoint.find(tiny_bert)
    (tmp_path / "tokenizer.json").write_bytes((tiny_bert / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((tiny_bert / "tokenizer_config.json").read_bytes())
    tuned = write_manifest(tmp_path, LABELS)
    assert [tensor.initializer for tensor in tuned.dense] == [None, None]
    assert write_manifest(tmp_path, LABELS, train_head=False).dense == ()
    three = Task(kind=TaskKind.CLASSIFICATION, labels=("a", "b", "c"))
    assert all(tensor.initializer is not None for tensor in write_manifest(tmp_path, three).dense)


@pytest.mark.parametrize("pooling", list(Pooling))
def test_a_vision_transformer_has_its_linear_layers_tuned_and_a_fresh_head(tiny_vit, pooling):
    """The checkpoint has its tensors under the names of earlier transformers: none may be taken for absent."""
    task = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("no", "yes"), pooling=pooling)
    manifest = write_manifest(tiny_vit, task)
    prefix, kind = ("vit.", "ViTForImageClassification") if pooling is Pooling.MODEL else ("", "ViTModel")
    assert manifest.base.architecture == kind
    assert {(module.name, module.out_features, module.in_features) for module in manifest.low_rank} == {
        (f"{prefix}layers.{layer}.{name}", out, into)
        for layer in range(2)
        for name, out, into in [
            *((f"attention.{each}_proj", 48, 48) for each in "qkvo"),
            ("mlp.fc1", 80, 48),
            ("mlp.fc2", 48, 80),
        ]
    }
    assert [(t.name, t.shape) for t in manifest.dense] == [("classifier.weight", (2, 48)), ("classifier.bias", (2,))]
    assert all(tensor.initializer is not None for tensor in manifest.dense)
    assert manifest.base.tokenizer_digest is None
    assert manifest.base.image_processor_digest == Checkpoint.find(tiny_vit).image_processor_digest()


def test_a_language_model_keeps_its_output_embedding(tiny_llama):
    manifest = write_manifest(tiny_llama, LANGUAGE)
    assert manifest.dense == ()
    assert len(manifest.low_rank) == 2 * 7
    assert all(module.name.startswith("model.layers.") for module in manifest.low_rank)


def test_target_modules_select_by_suffix(tiny_llama):
    manifest = write_manifest(
        tiny_llama, LANGUAGE, method=Lora(target_modules=("q_proj", "model.layers.1.mlp.up_proj"))
    )
    assert [module.name for module in manifest.low_rank] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


def test_a_target_that_matches_nothing_is_named_with_what_there_is(tiny_llama):
    with pytest.raises(ConfigError, match=r"'query' matches no linear layer; there are .*q_proj"):
        write_manifest(tiny_llama, LANGUAGE, method=Lora(target_modules=("q_proj", "query")))


def test_a_fresh_head_must_be_trained(tiny_bert):
    with pytest.raises(ConfigError, match="leave train_head on"):
        write_manifest(tiny_bert, LABELS, train_head=False)


def test_conv1d_layers_are_tuned_in_their_own_orientation(tiny_llama, tmp_path):
    config = transformers.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    shapes = {m.name: (m.out_features, m.in_features) for m in write_manifest(tmp_path, LANGUAGE).low_rank}
    assert shapes["transformer.h.0.attn.c_attn"] == (48, 16)
    assert shapes["transformer.h.0.mlp.c_proj"] == (16, 64)


def test_what_is_written_survives_the_wire(tiny_bert):
    manifest = write_manifest(tiny_bert, LABELS, quantizations=[Quantization.NF4], rank_max=4, name="a name")
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.base.name == "a name"
    assert manifest.base.fingerprint == Checkpoint.find(tiny_bert).fingerprint()


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match="expected a transformers config"):
        write_manifest(tmp_path, LABELS)
