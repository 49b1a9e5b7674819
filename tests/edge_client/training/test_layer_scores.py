"""Layer scores against the formula, and the probes of a whole trainer on tiny models."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from edge_client.errors import AggregatorError, DataError
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.task_model import TaskModel
from edge_client.trainers.torch_trainer import TorchTrainer
from edge_client.training.layer_scores import layer_scores, similarity_score
from protocol.assignment import AssignmentKind
from protocol.manifest import Quantization, Task, TaskKind
from protocol.probes import LayerReport, Probe
from tests.edge_client.methods.tuned import TEXT, batch, bert

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16)
LANGUAGE = Task(kind=TaskKind.CAUSAL_LM, max_length=16)
SENTENCES = [
    {"sentence": f"{'good' if i % 2 else 'bad'} w{i % 40} film" + " a" * (i % 5), "label": i % 2} for i in range(32)
]
ANSWERS = [{"prompt": f"w{i} a b", "answer": "yes" if i % 2 else "no film"} for i in range(32)]


def test_orthogonal_examples_score_lowest_and_equal_ones_highest() -> None:
    n = 6
    orthogonal, equal = similarity_score(torch.eye(n)), similarity_score(torch.ones(n, 3))
    assert orthogonal == pytest.approx(n, rel=1e-4)
    expected = np.log(n + 1e-5) + 1 / (n + 1e-5) + (n - 1) * (np.log(1e-5) + 1e5)
    assert equal == pytest.approx(expected, rel=1e-6)
    rng = torch.Generator().manual_seed(0)
    assert orthogonal < similarity_score(torch.randn(n, 2, 50, generator=rng)) < equal


def test_the_score_is_that_of_the_similarities_eigenvalues() -> None:
    states = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(1))
    rows = states.reshape(5, -1).numpy().astype(float)
    cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in rows] for a in rows])
    damped = np.linalg.eigvalsh(cosine) + 1e-5
    assert similarity_score(states) == pytest.approx(float(np.sum(np.log(damped) + 1 / damped)), rel=1e-9)
    assert similarity_score(17.0 * states) == pytest.approx(similarity_score(states))


@pytest.fixture
def probed(request, assign, handout):
    """What a trainer answers."""

    def probed(model="tiny_bert", task=LABELS, data=SENTENCES, quantization="fp32", probe=Probe.KEPT_LAYERS, **local):
        folder = request.getfixturevalue(model)
        manifest = write_manifest(folder, task, rank_max=4)
        trainer = TorchTrainer(folder, data=data, quantization=quantization, device="cpu")
        trainer.info(manifest)
        assignment = replace(assign(2, kind=AssignmentKind.PROBE, **local), probe=probe)
        result = trainer.run(
            assignment, handout(manifest, 2, size=0.1), cancelled=lambda: False, progress=lambda _: None
        )
        assert result.update is None
        assert result.num_examples == len(data)
        return result.metrics

    return probed


@pytest.mark.parametrize(
    ("model", "task", "data"), [("tiny_bert", LABELS, SENTENCES), ("tiny_llama", LANGUAGE, ANSWERS)]
)
def test_a_trainer_scores_every_layer_and_says_what_to_keep(probed, model, task, data):
    metrics = probed(model, task, data, batch_size=8)
    report = LayerReport.of_metrics(Probe.KEPT_LAYERS, 2, metrics)
    assert len(report.scores) == 2
    assert len(set(report.scores)) == 2
    assert 0.0 <= report.kept_share <= 1.0


def test_the_seed_draws_the_batch(probed):
    first, again, other = (probed(batch_size=8, probe=Probe.LAYER_SCORES, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


@dataclass
class Padded:
    """A context whose batches are given as tensors."""

    model: TaskModel

    def tensors(self, examples):
        return examples


def test_the_length_that_a_batch_is_padded_to_has_no_part() -> None:
    context = Padded(TaskModel(bert(), TEXT).eval())
    short = batch(5, 7, 3)
    longer = {name: torch.nn.functional.pad(values, (0, 6)) for name, values in short.items()}
    scores = layer_scores(context, short)
    assert len(scores) == 2
    np.testing.assert_allclose(layer_scores(context, longer), scores, rtol=1e-5)
    counted = layer_scores(context, {**longer, "attention_mask": torch.ones_like(longer["attention_mask"])})
    assert not np.allclose(counted, scores, rtol=1e-3)


def test_the_share_alone_costs_a_hessian(probed):
    assert list(probed(batch_size=4, probe=Probe.LAYER_SCORES)) == ["layer.0", "layer.1"]


def test_a_probe_of_a_base_that_is_held_in_few_bits(probed):
    report = LayerReport.of_metrics(Probe.KEPT_LAYERS, 2, probed(batch_size=4, quantization=Quantization.NF4))
    assert 0.0 <= report.kept_share <= 1.0


def test_what_cannot_be_probed_is_refused(probed):
    with pytest.raises(AggregatorError, match="probe 'weather', which this version does not know"):
        probed(probe="weather")
    with pytest.raises(DataError, match="no data"):
        probed(data=None)
