"""Head tuning trains the head, and declares and sends nothing else."""

import numpy as np
import pytest
import torch

from edge_client.errors import ConfigError
from edge_client.methods import method_of
from edge_client.methods.head import Head
from edge_client.methods.scaling import LoraSettings
from edge_client.model.base_model import load_backbone
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.task_model import TaskModel
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), pooling=Pooling.MEAN)
BATCH = {"input_ids": torch.arange(4, 20).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}


def test_the_head_alone_is_declared_trained_and_sent(tiny_bert, handout):
    manifest = write_manifest(tiny_bert, LABELS, method=Head())
    assert manifest.names == ("classifier.weight", "classifier.bias")
    backbone = load_backbone(
        Checkpoint.find(tiny_bert),
        manifest,
        quantization=Quantization.NF4,
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
    )
    model, layout = TaskModel(backbone, LABELS), Layout.of(manifest)
    tuner = method_of(manifest).tuner(model, manifest, LoraSettings())
    parameters = tuner.load(handout(manifest, 1, size=0.1), 1, layout)
    assert [id(p) for p in parameters] == [id(p) for p in model.parameters() if p.requires_grad]
    model.logits(BATCH).sum().backward()
    with torch.no_grad():
        for parameter in parameters:
            assert parameter.grad.abs().sum() > 0
            parameter += 0.5
    change = tuner.change(layout)
    assert change.slots.size == 0
    for value in change.dense.values():
        np.testing.assert_allclose(value, 0.5, atol=1e-6)


def test_a_task_without_a_head_is_refused(tiny_bert):
    with pytest.raises(ConfigError, match="embedding tasks have no head"):
        write_manifest(tiny_bert, Task(kind=TaskKind.EMBEDDING, pooling=Pooling.MEAN), method=Head())
