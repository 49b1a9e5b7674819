"""Private training on real models: each example's share by the definition, and noise that nobody can take off again."""

import numpy as np
import pytest
import torch

from edge_client.data.sources import open_rows
from edge_client.errors import ConfigError
from edge_client.methods.scaling import LoraSettings
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from edge_client.training.private import private_gradients
from protocol.assignment import LocalTraining
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16, pooling=Pooling.MEAN)
LANGUAGE = Task(kind=TaskKind.CAUSAL_LM, max_length=16)
EMBEDDING = Task(kind=TaskKind.EMBEDDING, pooling=Pooling.MEAN, max_length=16)
SENTENCES = [
    {"sentence": f"{'good' if i % 2 else 'bad'} w{i % 40}" + " film" * (i % 5), "label": i % 2} for i in range(6)
]
ANSWERS = [{"prompt": f"w{i} a b", "answer": "yes" + " no film" * (i % 4)} for i in range(6)]
PAIRS = [{"query": f"a w{i}", "target": f"w{i} film"} for i in range(6)]
QUIET = {"noise_multiplier": 1e-9, "batch_size": 6}


def flat(tensors) -> np.ndarray:
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])


@pytest.mark.parametrize(
    ("model", "task", "rows", "quantization"),
    [
        ("tiny_bert", LABELS, SENTENCES, "fp32"),
        ("tiny_bert", LABELS, SENTENCES, "nf4"),
        ("tiny_bert", LABELS, SENTENCES, "int8"),
        ("tiny_llama", LANGUAGE, ANSWERS, "fp32"),
    ],
)
def test_a_step_is_the_sum_of_what_clipping_leaves_of_each_example(request, handout, model, task, rows, quantization):
    folder = request.getfixturevalue(model)
    manifest = write_manifest(folder, task, rank_max=4)
    base = SharedBase(BaseSettings(model=folder, quantization=Quantization(quantization), device="cpu"))
    tuned = base.tuned(manifest, LoraSettings(), 4, False)
    parameters = tuned.tuner.load(handout(manifest, 4, size=0.3), 4, Layout.of(manifest))
    examples = tuned.preprocessor.encode(open_rows(rows, "train"))
    tuned.context.model.train()
    # An example's own gradient, without ever asking for one alone: what a batch loses without it.
    weighted = [tuned.objective.units([example]) for example in examples]

    def gradient(chosen):
        loss = tuned.objective.loss_sum(tuned.context, chosen)
        return flat(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))

    whole = gradient(examples)
    own = [(whole - gradient(examples[:i] + examples[i + 1 :])) / weighted[i] for i in range(len(examples))]
    norms = [np.linalg.norm(each) for each in own]
    clip_norm = float(np.median(norms))
    assert min(norms) < clip_norm < max(norms)
    expected = sum(min(1.0, clip_norm / norm) * each for norm, each in zip(norms, own, strict=True)) / len(examples)
    local = LocalTraining(**QUIET, clip_norm=clip_norm)
    secret = np.random.default_rng(0)
    next(private_gradients(tuned.context, tuned.objective, examples, parameters, local, secret))
    found = flat(parameter.grad for parameter in parameters)
    assert np.linalg.norm(found - expected) < (0.05 if quantization == "int8" else 1e-3) * np.linalg.norm(expected)


@pytest.fixture
def train(tiny_bert, assign, handout):
    """One private round of a fresh trainer, from the same hand-out and the same assignment."""
    manifest = write_manifest(tiny_bert, LABELS, rank_max=4)
    given = assign(4, seed=5, noise_multiplier=1.0, batch_size=3, learning_rate=1e-2)

    def train(noise_seed: int | None = None, **others):
        trainer = TorchTrainer(tiny_bert, SENTENCES, quantization="fp32", device="cpu", noise_seed=noise_seed, **others)
        assert trainer.info(manifest).private
        return trainer.run(given, handout(manifest, 4), cancelled=lambda: False, progress=lambda _: None)

    return train


def test_who_knows_the_assignments_seed_does_not_know_the_noise(train):
    first, second = train(), train()
    assert not np.allclose(first.update.slots, second.update.slots)
    assert first.metrics == second.metrics == {}


def test_a_simulation_can_be_had_again(train):
    assert np.array_equal(train(noise_seed=3).update.slots, train(noise_seed=3).update.slots)
    assert not np.allclose(train(noise_seed=3).update.slots, train(noise_seed=4).update.slots)


def test_a_loss_that_contrasts_the_batch_is_refused_on_the_device_too(tiny_bert, assign, handout):
    manifest = write_manifest(tiny_bert, EMBEDDING, rank_max=4)
    trainer = TorchTrainer(tiny_bert, PAIRS, quantization="fp32", device="cpu")
    trainer.info(manifest)
    with pytest.raises(ConfigError, match="contrasts the examples"):
        trainer.run(
            assign(4, **QUIET), handout(manifest, 4), cancelled=lambda: False, progress=lambda _: None
        )  # fmt: skip
