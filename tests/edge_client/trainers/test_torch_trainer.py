"""Whole assignments on tiny models: every task, every precision, and all that can be wrong with a device."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from edge_client.errors import AggregatorError, BaseModelError, ConfigError, DataError, EdgeClientError
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainer import Cancelled
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import AssignmentKind
from protocol.codecs import Codec
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import AdapterTensors, Factor, Layout

EMBEDDING = Task(kind=TaskKind.EMBEDDING, pooling=Pooling.MEAN, max_length=16)
LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16)
POOLED = dataclasses.replace(LABELS, pooling=Pooling.MEAN)
NUMBER = Task(kind=TaskKind.REGRESSION, pooling=Pooling.CLS, max_length=16)
LANGUAGE = Task(kind=TaskKind.CAUSAL_LM, max_length=16)

SENTENCES = [{"sentence": f"{'good' if i % 2 else 'bad'} w{i % 40} film", "label": i % 2} for i in range(32)]
COUPLES = [{"sentence1": f"w{i}", "sentence2": f"w{i if i % 2 else i + 1}", "label": i % 2} for i in range(32)]
PAIRS = [{"query": f"a w{i} " * (1 + i % 3), "target": f"w{i} film"} for i in range(32)]
ANSWERS = [{"prompt": f"w{i} a b", "answer": "yes" if i % 2 else "no film"} for i in range(32)]

TASKS = {
    "classification": ("tiny_bert", LABELS, SENTENCES),
    "pairs": ("tiny_bert", LABELS, COUPLES),
    "pooled": ("tiny_bert", POOLED, SENTENCES),
    "regression": ("tiny_bert", NUMBER, SENTENCES),
    "embedding": ("tiny_bert", EMBEDDING, PAIRS),
    "language": ("tiny_llama", LANGUAGE, ANSWERS),
    "decoder-classification": ("tiny_llama", LABELS, SENTENCES),
}


def run(trainer, assignment, adapter, progress=lambda _: None, cancelled=lambda: False):
    return trainer.run(assignment, adapter, cancelled=cancelled, progress=progress)


@pytest.fixture
def ready(request):
    """A trainer that has seen its manifest."""

    def ready(name: str = "embedding", **settings):
        model, task, rows = TASKS[name]
        folder = request.getfixturevalue(model)
        manifest = write_manifest(folder, task, rank_max=8)
        trainer = TorchTrainer(folder, **{"data": rows, "quantization": "fp32", "device": "cpu"} | settings)
        trainer.info(manifest)
        return trainer, manifest

    return ready


def add(adapter: AdapterTensors, update: AdapterTensors) -> AdapterTensors:
    dense = {name: value + update.dense[name] for name, value in adapter.dense.items()}
    return AdapterTensors(dense, adapter.slots + update.slots)


@pytest.mark.parametrize("name", TASKS)
def test_training_lowers_the_loss_of_every_task(name, ready, assign, handout):
    trainer, manifest = ready(name)
    start = handout(manifest, 4)
    before = run(trainer, assign(4, kind=AssignmentKind.EVALUATE), start)
    result = run(trainer, assign(4, epochs=4, batch_size=8, learning_rate=1e-2), start)
    after = run(trainer, assign(4, kind=AssignmentKind.EVALUATE), add(start, result.update))
    assert after.metrics["loss"] < before.metrics["loss"]
    assert before.update is None
    assert result.num_examples == after.num_examples == 32
    assert all(np.isfinite(value) for value in after.metrics.values())


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16"])
@pytest.mark.parametrize("name", ["classification", "embedding", "language"])
def test_every_precision_trains_towards_the_same_as_fp32(name, quantization, ready, assign, handout):
    updates = []
    for held in (quantization, "fp32"):
        trainer, manifest = ready(name, quantization=held, rank=4)
        assert trainer.info(manifest).quantization is Quantization(held)
        updates.append(run(trainer, assign(4, batch_size=32), handout(manifest, 4, size=0.05)).update.slots.ravel())
    coarse, exact = updates
    assert coarse @ exact > 0.5 * np.linalg.norm(coarse) * np.linalg.norm(exact) > 0


def test_the_update_fits_the_assignments_layout(ready, assign, handout):
    trainer, manifest = ready("classification", residual=True)
    active = (manifest.low_rank[2].name, "classifier.weight")
    assignment = assign(2, slots=6, active=active, batch_size=16)
    update = run(trainer, assignment, handout(manifest, 6, size=0.1)).update
    layout = assignment.update_layout(manifest)
    assert update.slots.shape == (2, layout.width)
    assert list(update.dense) == ["classifier.weight"]
    assert layout.decode(layout.encode(update, assignment.update_codec), 2, assignment.update_codec)


def test_the_update_of_a_frozen_factor_moves_the_model_within_the_rows_handed_out(ready, assign, handout):
    trainer, manifest = ready("classification")
    assignment = assign(2, frozen_factors=(Factor.A,), batch_size=16)
    update = run(trainer, assignment, handout(manifest, 2)).update
    layout = assignment.update_layout(manifest)
    assert update.slots.shape == (2, sum(module.out_features for module in manifest.low_rank))
    assert update.slots.any()
    assert all(value.any() for value in update.dense.values())
    assert len(layout.encode(update, Codec.BF16)) < 0.8 * len(
        Layout.of(manifest).encode(handout(manifest, 2), Codec.BF16)
    )


def test_a_proximal_term_holds_a_device_closer_to_what_it_was_handed(ready, assign, handout):
    norms, (trainer, manifest) = [], ready("classification")
    for mu in (0.0, 1.0):
        local = {"batch_size": 8, "epochs": 2, "learning_rate": 1e-2, "proximal_mu": mu}
        norms.append(np.linalg.norm(run(trainer, assign(4, **local), handout(manifest, 4)).update.slots))
    assert norms[0] > 1.2 * norms[1] > 0


def test_the_hand_out_is_left_as_it_was(ready, assign, handout):
    trainer, manifest = ready("classification")
    given, same = handout(manifest, 4, size=0.1), handout(manifest, 4, size=0.1)
    run(trainer, assign(2, slots=4, batch_size=16), given)
    assert np.array_equal(given.slots, same.slots)
    assert all(np.array_equal(given.dense[name], same.dense[name]) for name in same.dense)


def test_the_seed_alone_decides_and_rounds_leave_no_trace(ready, assign, handout):
    trainer, manifest = ready("classification")
    start = handout(manifest, 4, size=0.1)
    first = run(trainer, assign(4, seed=5, batch_size=8), start).update.slots
    other = run(trainer, assign(2, slots=4, seed=6, batch_size=8), start).update.slots
    run(trainer, assign(4, kind=AssignmentKind.EVALUATE), start)
    torch.manual_seed(99)
    again = run(trainer, assign(4, seed=5, batch_size=8), start).update.slots
    assert np.array_equal(first, again)
    assert not np.allclose(first[:2], other)


@pytest.mark.parametrize("name", ["pooled", "language"])
def test_micro_batches_give_the_same_update(name, ready, assign, handout):
    updates = []
    for size in (None, 3):
        trainer, manifest = ready(name, micro_batch_size=size)
        local = {"batch_size": 16, "epochs": 0.5, "learning_rate": 1e-4}
        updates.append(run(trainer, assign(4, **local), handout(manifest, 4, size=0.1)).update.slots)
    np.testing.assert_allclose(*updates, atol=2e-5)
    assert np.abs(updates[0]).max() > 5e-5


def test_dropout_of_the_base_is_on_only_when_asked_for(ready, assign, handout):
    updates = []
    for on, seed in ((False, 1), (False, 2), (True, 1), (True, 2)):
        trainer, manifest = ready("pooled", base_dropout=on)
        assignment = assign(4, batch_size=32, seed=seed, learning_rate=1e-4)  # one batch: the order hardly matters
        updates.append(run(trainer, assignment, handout(manifest, 4, size=0.1)).update.slots)
    without, also_without, dropped, also_dropped = updates
    np.testing.assert_allclose(without, also_without, atol=2e-5)
    assert np.abs(dropped - also_dropped).max() > 1e-4


def test_a_learning_rate_of_zero_changes_nothing(ready, assign, handout):
    trainer, manifest = ready("classification")
    update = run(trainer, assign(4, learning_rate=0.0), handout(manifest, 4, size=0.1)).update
    assert not update.slots.any()
    assert not any(value.any() for value in update.dense.values())


def test_progress_is_told_after_every_step(ready, assign, handout):
    trainer, manifest = ready()
    seen = []
    run(trainer, assign(2, batch_size=8, max_steps=3), handout(manifest, 2), seen.append)
    assert [(p.step, p.steps, p.round) for p in seen] == [(1, 3, 1), (2, 3, 1), (3, 3, 1)]


def test_cancelling_stops_between_two_steps_and_leaves_the_trainer_usable(ready, assign, handout):
    trainer, manifest = ready()
    start, seen = handout(manifest, 2), []
    with pytest.raises(Cancelled):
        run(trainer, assign(2, batch_size=8), start, seen.append, lambda: len(seen) == 2)
    assert len(seen) == 2
    undisturbed, _ = ready()
    expected = run(undisturbed, assign(2, batch_size=8), start).update.slots
    assert np.array_equal(run(trainer, assign(2, batch_size=8), start).update.slots, expected)


def test_a_loss_that_is_not_finite_stops_training(ready, assign, handout):
    trainer, manifest = ready()
    with pytest.raises(EdgeClientError, match="diverged"):
        run(
            trainer,
            assign(2, batch_size=8),
            AdapterTensors({}, handout(manifest, 2, size=1.0).slots * np.float32(1e30)),
        )


def test_an_installed_adapter_is_in_use(ready, assign, handout):
    trainer, manifest = ready()
    trainer.install(handout(manifest, 4), 4)
    before = trainer.embed(["good film", "bad"])
    trainer.install(handout(manifest, 6, size=0.3), 2)
    after = trainer.embed(["good film", "bad"])
    assert not np.allclose(before, after, atol=1e-2)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1.0, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in trainer.model.parameters())


def test_embeddings_come_in_the_order_of_the_texts(ready, handout):
    trainer, manifest = ready()
    trainer.install(handout(manifest, 2), 2)
    texts = ["a", "good film " * 5, "bad w1", "w2 w3 w4 w5"]
    together = trainer.embed(texts, batch_size=2)
    alone = np.concatenate([trainer.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_an_assignment_that_trains_nothing_is_the_aggregators_fault(ready, assign, handout):
    trainer, manifest = ready("classification")
    with pytest.raises(AggregatorError, match="names nothing to train"):
        run(trainer, assign(4, active=()), handout(manifest, 4))


def test_a_device_without_data_evaluates_nothing_but_can_use_the_model(ready, assign, handout):
    trainer, manifest = ready(data=None)
    assert trainer.info(manifest).num_examples == 0
    assert trainer.embed(["a"]).shape == (1, 48)
    with pytest.raises(DataError, match="given no data"):
        run(trainer, assign(2), handout(manifest, 2))


def test_a_folders_validation_split_is_what_it_evaluates_on(tiny_bert, tmp_path, assign, handout):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, SENTENCES)))
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, SENTENCES[:5])))
    manifest = write_manifest(tiny_bert, LABELS)
    trainer = TorchTrainer(tiny_bert, tmp_path, quantization="fp32", device="cpu")
    assert trainer.info(manifest).num_examples == 32
    result = run(trainer, assign(2, kind=AssignmentKind.EVALUATE), handout(manifest, 2))
    assert result.num_examples == 5
    assert set(result.metrics) == {"loss", "accuracy", "f1", "matthews"}


def test_a_label_that_is_not_in_the_manifest_is_named_before_training(tiny_bert):
    rows = [*SENTENCES, {"sentence": "a", "label": "maybe"}]
    with pytest.raises(DataError, match=r"row 32: label 'maybe'"):
        TorchTrainer(tiny_bert, rows, quantization="fp32", device="cpu").info(write_manifest(tiny_bert, LABELS))


def test_another_base_is_refused(tiny_bert, tiny_llama):
    manifest = write_manifest(tiny_bert, LABELS)
    with pytest.raises(BaseModelError, match="fingerprint"):
        TorchTrainer(tiny_llama, SENTENCES, quantization="fp32", device="cpu").info(manifest)


def test_another_tokenizer_is_refused(tiny_bert):
    manifest = write_manifest(tiny_bert, LABELS)
    base = dataclasses.replace(manifest.base, tokenizer_digest="0" * 64)
    with pytest.raises(BaseModelError, match="tokenizer"):
        TorchTrainer(tiny_bert, SENTENCES, device="cpu").info(dataclasses.replace(manifest, base=base))


def test_a_precision_that_the_run_does_not_allow_is_refused(tiny_bert):
    manifest = write_manifest(tiny_bert, LABELS, quantizations=[Quantization.NF4, Quantization.INT8])
    with pytest.raises(ConfigError, match="allows nf4, int8, this device is set to fp32"):
        TorchTrainer(tiny_bert, SENTENCES, quantization="fp32", device="cpu").info(manifest)


def test_all_wrong_arguments_are_named_together(tiny_bert):
    with pytest.raises(ConfigError, match=r"quantization.*'fp4'.*rank.*0.*micro_batch_size.*-1"):
        TorchTrainer(tiny_bert, quantization="fp4", rank=0, micro_batch_size=-1)


def test_a_probe_is_refused(ready, assign, handout):
    trainer, manifest = ready()
    with pytest.raises(AggregatorError, match="probe"):
        run(trainer, assign(2, kind=AssignmentKind.PROBE), handout(manifest, 2))


def test_info_comes_first(tiny_bert):
    with pytest.raises(ConfigError, match="info"):
        _ = TorchTrainer(tiny_bert, device="cpu").model


def test_training_and_evaluating_are_silent(ready, assign, handout, capfd):
    trainer, manifest = ready("embedding", quantization="int8")
    capfd.readouterr()
    run(trainer, assign(2, batch_size=16), handout(manifest, 2))
    run(trainer, assign(2, kind=AssignmentKind.EVALUATE), handout(manifest, 2))
    trainer.embed(["a"])
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_the_whole_layout_is_used(ready, handout):
    trainer, manifest = ready("language")
    trainer.install(handout(manifest, 2), 2)
    assert Layout.of(manifest).width == sum(m.in_features + m.out_features for m in manifest.low_rank)


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16"])
def test_a_gpu_trains_like_a_cpu(quantization, ready, assign, handout):
    updates = []
    for device in ("cuda", "cpu"):
        trainer, manifest = ready("language", quantization=quantization, device=device, compute_dtype="fp32")
        updates.append(run(trainer, assign(4, batch_size=32), handout(manifest, 4, size=0.05)).update.slots.ravel())
    cuda, cpu = updates
    assert cuda @ cpu > 0.9 * np.linalg.norm(cuda) * np.linalg.norm(cpu) > 0
