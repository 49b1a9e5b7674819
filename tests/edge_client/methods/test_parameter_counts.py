"""How many numbers the methods declare for the models of two published studies, against those that the studies give.

FedPETuning (Zhang et al., 2023): RoBERTa-base, two labels, the architecture's own head; FedPEFT (Sun et al., 2022):
ViT-B/16, a hundred labels, a linear head. Adapters, prefixes and prompts are counted where they are tested.
"""

import pytest
import torch
import transformers

from edge_client.methods import METHODS, Subject
from protocol.manifest import DenseTensor, Task, TaskKind

ROBERTA = transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2)
VIT = transformers.ViTConfig(num_labels=100)
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"))
PICTURES = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=tuple(map(str, range(100))))
WHERE = {"target_modules": ("query", "value")}


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    with torch.device("meta"):
        models = {
            "RoBERTa": (transformers.RobertaForSequenceClassification(ROBERTA), LABELS),
            "ViT": (transformers.ViTForImageClassification(VIT), PICTURES),
        }
    return {name: subject_of(model, task) for name, (model, task) in models.items()}


def subject_of(model: transformers.PreTrainedModel, task: Task) -> Subject:
    body = {id(parameter) for parameter in model.base_model.parameters()}
    head = tuple(
        DenseTensor(name=name, shape=tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if id(parameter) not in body
    )
    return Subject(backbone=model, task=task, rank_max=16, head=head, seed=0)


@pytest.mark.parametrize(
    ("model", "method", "settings", "rank", "expected"),
    [
        ("RoBERTa", "head", {}, 1, 592_130),
        ("RoBERTa", "lora", WHERE, 8, 887_042),
        ("RoBERTa", "lora", WHERE, 16, 1_181_954),
        # The paper gives 0.7 million, and 190 times fewer than full fine-tuning; all biases and the head are 179.5.
        ("RoBERTa", "bitfit", {}, 1, 694_274),
        ("RoBERTa", "full", {}, 1, 124_647_170),
        ("ViT", "head", {}, 1, 76_900),
        ("ViT", "bitfit", {}, 1, 179_812),
        ("ViT", "full", {}, 1, 85_875_556),
    ],
)
def test_as_many_parameters_travel_as_the_study_has(subjects, model, method, settings, rank, expected):
    subject = subjects[model]
    declared = METHODS[method](**settings).declare(subject)
    dense = sum(tensor.size for tensor in (*subject.head, *declared.dense))
    low_rank = sum(rank * (module.out_features + module.in_features) for module in declared.low_rank)
    assert dense + low_rank == expected
