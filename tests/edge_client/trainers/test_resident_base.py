"""Many devices on one base in memory: what they compute, and what they take."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from edge_client.methods.bitfit import BitFit
from edge_client.methods.full import Full
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.manifest import DenseTensor, Pooling, Quantization, Task, TaskKind

POOLED = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16, pooling=Pooling.MEAN)
DEVICES = ({"rank": 2}, {"rank": 4, "lora_alpha": 3.0}, {"rank": 4}, {"rank": 2, "residual": True}, {"rank": 2})


def rows(device: int) -> list[dict[str, object]]:
    return [{"sentence": f"{'good' if i % 2 else 'bad'} w{i * device % 40}", "label": i % 2} for i in range(16)]


def run_rounds(trainers, manifest, assign, handout) -> list[np.ndarray]:
    """Two rounds, each device after the other, as a simulation runs them."""
    found = []
    for trainer in trainers:
        trainer.info(manifest)
    for number in range(2):
        for trainer, device in zip(trainers, DEVICES, strict=True):
            rank = device["rank"]
            slots = 6 if device.get("residual") else rank
            result = trainer.run(
                assign(rank, slots=slots, batch_size=8, seed=number),
                handout(manifest, slots, size=0.1),
                cancelled=lambda: False,
                progress=lambda _: None,
            )
            found += [result.update.slots, *result.update.dense.values()]
    return found


@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
@pytest.mark.parametrize("model", ["tiny_bert", pytest.param("tiny_llama", marks=pytest.mark.slow)])
def test_devices_that_share_a_base_give_the_bits_of_devices_that_do_not(request, model, quantization, assign, handout):
    folder = request.getfixturevalue(model)
    manifest = write_manifest(folder, POOLED, rank_max=8)
    held = {"quantization": Quantization(quantization), "device": "cpu"}
    base = SharedBase(BaseSettings(model=folder, **held))
    shared = [TorchTrainer.sharing(base, rows(i), **device) for i, device in enumerate(DEVICES)]
    alone = [TorchTrainer(folder, rows(i), **held, **device) for i, device in enumerate(DEVICES)]
    ours, theirs = (run_rounds(trainers, manifest, assign, handout) for trainers in (shared, alone))
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("method", "quantization"), [(BitFit(), "nf4"), (BitFit(), "bf16"), (Full(), "bf16")])
def test_devices_that_train_the_bases_own_tensors_do_not_see_each_others(
    tiny_bert, method, quantization, assign, handout
):
    manifest = write_manifest(tiny_bert, POOLED, method=method, rank_max=8)
    held = {"quantization": Quantization(quantization), "device": "cpu"}
    base = SharedBase(BaseSettings(model=tiny_bert, **held))
    shared = [TorchTrainer.sharing(base, rows(i), **device) for i, device in enumerate(DEVICES)]
    alone = [TorchTrainer(tiny_bert, rows(i), **held, **device) for i, device in enumerate(DEVICES)]
    ours, theirs = (run_rounds(trainers, manifest, assign, handout) for trainers in (shared, alone))
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_only_what_a_run_trains_is_held_more_than_once(tiny_bert):
    written = write_manifest(tiny_bert, POOLED, rank_max=8)
    norm = "encoder.layer.0.output.LayerNorm.weight"
    manifest = dataclasses.replace(written, dense=(*written.dense, DenseTensor(name=norm, shape=(48,))))
    base = SharedBase(BaseSettings(model=tiny_bert, quantization=Quantization.FP32, device="cpu"))
    one, other = (TorchTrainer.sharing(base, rows(1), rank=rank) for rank in (2, 4))
    for trainer in (one, other):
        trainer.info(manifest)
    first, second = (dict(trainer.model.named_parameters()) for trainer in (one, other))
    held = [name for name in first if "lora_" not in name]
    twice = {name for name in held if first[name].data_ptr() != second[name].data_ptr()}
    assert {name.removeprefix("base_model.model.") for name in twice} == {norm}


def test_devices_of_one_rank_and_scaling_share_a_model(tiny_bert):
    manifest = write_manifest(tiny_bert, POOLED, rank_max=8)
    base = SharedBase(BaseSettings(model=tiny_bert, quantization=Quantization.FP32, device="cpu"))
    one, same, scaled = (TorchTrainer.sharing(base, rows(1), rank=4, lora_alpha=alpha) for alpha in (None, None, 2.0))
    for trainer in (one, same, scaled):
        trainer.info(manifest)
    assert one.model is same.model
    assert one.model is not scaled.model


@pytest.mark.slow
def test_the_memory_of_nineteen_more_devices_is_a_fraction_of_the_bases():
    """In a process of its own; twenty bases would take 1.8 GB."""
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    base_bytes, growth_bytes = map(int, done.stdout.split())
    assert base_bytes > 80e6
    assert growth_bytes < 0.3 * base_bytes


GROWTH = """
from benchmarks.anonymous_memory import anonymous_bytes
from benchmarks.models import minilm_folder
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import Assignment, AssignmentKind, Handout, LocalTraining
from protocol.codecs import Codec
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

def train(trainer, rank):
    trainer.info(manifest)
    given = Handout(digest="0" * 64, object_bytes=0, codec=Codec.FP32, slots=rank)
    assignment = Assignment(kind=AssignmentKind.TRAIN, run="run", round=1, version=0, token="0" * 32, rank=rank,
                            handout=given, local=LocalTraining(max_steps=1, batch_size=8))
    trainer.run(assignment, Layout.of(manifest).zeros(rank), cancelled=lambda: False, progress=lambda _: None)

task = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16, pooling=Pooling.MEAN)
manifest = write_manifest(minilm_folder(), task, rank_max=16)
base = SharedBase(BaseSettings(model=minilm_folder(), quantization=Quantization.FP32, device="cpu"))
rows = [{"sentence": f"a sentence of number {i}", "label": i % 2} for i in range(8)]
trainers = [TorchTrainer.sharing(base, rows, rank=(2, 4, 8, 16)[i % 4]) for i in range(20)]
train(trainers[0], 2)
before = anonymous_bytes()
for i, trainer in enumerate(trainers):
    train(trainer, (2, 4, 8, 16)[i % 4])
held = sum(p.numel() * p.element_size() for p in trainers[0].model.get_base_model().parameters())
print(held, anonymous_bytes() - before)
"""
