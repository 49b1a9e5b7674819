"""Soft prompts against embeddings concatenated by hand, against the words of real text, and against PEFT's own."""

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file

from edge_client.errors import BaseModelError, ConfigError
from edge_client.methods import Subject
from edge_client.methods.prompt import Prompt
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.quiet import quiet_loading
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.manifest import Pooling, Task, TaskKind
from tests.edge_client.methods.tuned import TEXT, batch, bert, gpt2, llama, opt, roberta, tuned

LENGTH = 5
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16)
MEAN, CLS = (Task(kind=TaskKind.EMBEDDING, max_length=16, pooling=pooling) for pooling in (Pooling.MEAN, Pooling.CLS))
POOLER = Task(kind=TaskKind.EMBEDDING, max_length=16)
MODELS = {
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


def states(backbone, prompt, texts):
    """Last hidden states of prompt and text, from embeddings and masks put together here."""
    body = backbone.base_model
    words = body.get_input_embeddings()(texts["input_ids"])
    rows = len(words)
    inputs = {
        "inputs_embeds": torch.cat((prompt.expand(rows, -1, -1), words), 1),
        "attention_mask": torch.cat((torch.ones(rows, len(prompt), dtype=torch.int64), texts["attention_mask"]), 1),
    }
    if "token_type_ids" in texts:
        zeros = torch.zeros(rows, len(prompt), dtype=torch.int64)
        inputs["token_type_ids"] = torch.cat((zeros, texts["token_type_ids"]), 1)
    return body(**inputs).last_hidden_state


@pytest.mark.parametrize("build", [lambda: bert(add_pooling_layer=False), lambda: roberta(add_pooling_layer=False)])
def test_means_and_first_tokens_are_the_texts_own(build):
    texts = batch(7, 4, types=build().config.model_type == "bert")
    for task in (MEAN, CLS):
        found = tuned(build(), Prompt(length=LENGTH), task)
        with torch.no_grad():
            own = states(build(), found.loaded("prompt.embeddings"), texts)[:, LENGTH:]
            expected = own[:, 0] if task is CLS else torch.stack((own[0, :7].mean(0), own[1, :4].mean(0)))
            torch.testing.assert_close(found.model.pooled(texts), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [bert, roberta])
def test_a_pooler_inside_the_body_pools_the_texts_first_token(build):
    texts = batch(7, 4)
    found = tuned(build(), Prompt(length=LENGTH), POOLER)
    plain = build()
    with torch.no_grad():
        own = states(plain, found.loaded("prompt.embeddings"), texts)[:, LENGTH:]
        torch.testing.assert_close(found.model.pooled(texts), plain.pooler(own), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("build", "task"), [MODELS[name] for name in ("bert-head", "roberta-head")])
def test_heads_of_encoders_read_the_texts_first_token(build, task):
    texts = batch(7, 4, types=True) if build is MODELS["bert-head"][0] else batch(7, 4)
    found, plain = tuned(build(), Prompt(length=LENGTH), task), build()
    with torch.no_grad():
        own = states(plain, found.loaded("prompt.embeddings"), texts)[:, LENGTH:]
        features = plain.bert.pooler(own) if hasattr(plain, "bert") else own
        torch.testing.assert_close(found.model.logits(texts), plain.classifier(features), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [llama, gpt2, opt])
def test_words_of_a_text_are_a_prompt_that_stands_for_the_text(build):
    """Positions, masks and the places of the scores are right if a real beginning can be replaced by its vectors."""
    found, plain = tuned(build(), Prompt(length=LENGTH)), build()
    ids = batch(LENGTH + 8)["input_ids"]
    with torch.no_grad():
        found.model.backbone.prompt.embeddings.copy_(plain.get_input_embeddings()(ids[0, :LENGTH]))
        rest = {"input_ids": ids[:, LENGTH:], "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
        torch.testing.assert_close(found.model.logits(rest), plain(ids).logits[:, LENGTH:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("build", "kind"), [(lambda: bert(add_pooling_layer=False), "FEATURE_EXTRACTION"), (llama, "CAUSAL_LM")]
)
def test_pefts_prompt_tuning_of_these_values_has_the_same_states_behind_its_prompts(build, kind, tmp_path):
    """The adapter is saved under PEFT's names and loaded by PEFT from there."""
    found, texts = tuned(build(), Prompt(length=LENGTH)), batch(7, 4)
    config = peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=LENGTH, inference_mode=True)
    config.num_layers, config.token_dim, config.num_attention_heads, config.num_transformer_submodules = 2, 48, 4, 1
    config.save_pretrained(tmp_path)
    save_file({"prompt_embeddings": found.loaded("prompt.embeddings")}, tmp_path / "adapter_model.safetensors")
    with quiet_loading(), torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(build(), tmp_path).eval()(**texts)
        ours = found.model.backbone(**texts)
    real = texts["attention_mask"].bool()
    name = "logits" if kind == "CAUSAL_LM" else "last_hidden_state"
    torch.testing.assert_close(ours[name][real], theirs[name][:, LENGTH:][real], atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing(model_and_task):
    model, task = model_and_task
    found, texts = tuned(model, Prompt(length=LENGTH), task), batch(7, 4)
    alone = {name: value[1:, :4] for name, value in texts.items()}
    with torch.no_grad():
        together, single = found.model.logits(texts)[1:], found.model.logits(alone)
    if task is TEXT:
        together = together[:, :4]
    torch.testing.assert_close(together, single, atol=1e-5, rtol=1e-4)


def test_the_prompt_has_a_gradient_and_nothing_else_has(model_and_task):
    model, task = model_and_task
    found = tuned(model, Prompt(length=LENGTH), task)
    found.model.train()
    (prompt,) = found.tuner.load(found.handout, 1, found.layout)
    assert [id(p) for p in found.model.parameters() if p.requires_grad] == [id(prompt)]
    found.model.logits(batch(7, 4)).square().sum().backward()
    assert bool(prompt.grad.abs().sum(1).gt(0).all())


@pytest.mark.parametrize("build", [llama, gpt2])
def test_generation_has_the_prompt_before_every_step(build):
    """Against the scores of a full pass without a cache, word after word."""
    found = tuned(build(), Prompt(length=LENGTH))
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
@pytest.mark.parametrize(("folder", "task"), [("tiny_bert", LABELS), ("tiny_llama", TEXT)])
def test_a_device_trains_it_on_a_quantised_base(request, folder, task, quantization, assign, handout):
    manifest = write_manifest(request.getfixturevalue(folder), task, method=Prompt(length=LENGTH))
    rows = [{"sentence": "good film", "label": 1}, {"sentence": "bad w1 w2", "label": 0}]
    if task is TEXT:
        rows = [{"text": "good film a b c"}, {"text": "bad w1 w2"}]
    trainer = TorchTrainer(request.getfixturevalue(folder), rows, quantization=quantization, device="cpu")
    trainer.info(manifest)
    result = trainer.run(
        assign(1, batch_size=2, max_steps=2, learning_rate=1e-2),
        handout(manifest, 1, size=0.1),
        cancelled=lambda: False,
        progress=lambda _: None,
    )
    assert result.update.slots.size == 0
    assert list(result.update.dense) == [tensor.name for tensor in manifest.dense]
    for name, value in result.update.dense.items():
        assert value.dtype == np.float32
        assert np.all(np.isfinite(value)), name
        assert np.any(value), name


def declared(backbone, length, task=LABELS):
    return Prompt(length=length).declare(Subject(backbone=backbone, task=task, rank_max=1, head=(), seed=0)).dense


def test_one_tensor_of_the_embeddings_width_is_declared():
    (tensor,) = declared(llama(), 3)
    assert (tensor.name, tensor.shape) == ("prompt.embeddings", (3, 48))
    assert 0.005 < float(np.std(tensor.initializer.values((100, 48)))) < 0.05


def test_models_that_cannot_have_a_prompt_are_refused():
    with torch.device("meta"):
        vit = transformers.ViTModel(transformers.ViTConfig(num_hidden_layers=1))
        t5 = transformers.T5Model(transformers.T5Config(num_layers=1))
        albert = transformers.AlbertForSequenceClassification(transformers.AlbertConfig())
    with pytest.raises(ConfigError, match="takes no 'inputs_embeds'"):
        declared(vit, LENGTH)
    with pytest.raises(ConfigError, match="has an encoder and a decoder"):
        declared(t5, LENGTH)
    with pytest.raises(ConfigError, match="pools its first position"):
        declared(albert, LENGTH)
    assert declared(albert.base_model, LENGTH, MEAN)


@pytest.mark.parametrize(("build", "room"), [(bert, 40), (roberta, 39), (llama, 40), (gpt2, 40)])
def test_a_prompt_takes_positions_from_the_text(build, room):
    """RoBERTa's positions begin behind its padding token's."""
    length = room - TEXT.max_length
    found = tuned(build(), Prompt(length=length))
    with torch.no_grad():
        found.model.backbone(**batch(TEXT.max_length, 3))
    with pytest.raises(ConfigError, match=f"has {room} positions, a text takes up to 12 of them"):
        declared(build(), length + 1, TEXT)


@pytest.mark.parametrize("length", [0, -3, 2.5, True, "20"])
def test_a_length_that_is_none_is_refused(length):
    with pytest.raises(ConfigError, match="length: expected a number of tokens"):
        Prompt(length=length)


def test_a_model_takes_one_prompt_only():
    model = llama()
    tuned(model, Prompt(length=LENGTH))
    with pytest.raises(BaseModelError, match="load the base model anew"):
        tuned(model, Prompt(length=LENGTH))
