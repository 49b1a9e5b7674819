"""Assignments through TRL's SFTTrainer and transformers' Trainer, as a user has built them."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
import transformers

from edge_client.errors import BaseModelError, ConfigError
from edge_client.methods import METHODS
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainer import Cancelled
from edge_client.trainers.hf_trainer import HFTrainerAdapter
from protocol.assignment import AssignmentKind
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import AdapterTensors, Factor

# What TRL 1.16 and PEFT 0.21 set off in transformers 5.23; none of it is ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
]

LANGUAGE = Task(kind=TaskKind.CAUSAL_LM, max_length=16)
ROWS = [{"prompt": f"w{i} a b ", "completion": "yes" if i % 2 else "no film"} for i in range(16)]


def run(adapter, assignment, handout, progress=lambda _: None, cancelled=lambda: False):
    return adapter.run(assignment, handout, cancelled=cancelled, progress=progress)


@pytest.fixture
def sft(tiny_llama, tmp_path):
    """An SFTTrainer on the tiny Llama."""

    def build(*, quantized=False, rank=4, **lora):
        import peft
        import trl

        config = None
        if quantized:
            config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tiny_llama, dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_llama)
        tokenizer.pad_token = tokenizer.eos_token
        args = trl.SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            use_cpu=True,
            bf16=False,
            report_to=[],
            max_length=16,
        )
        return trl.SFTTrainer(
            model,
            args=args,
            train_dataset=datasets.Dataset.from_list(ROWS),
            processing_class=tokenizer,
            peft_config=peft.LoraConfig(r=rank, target_modules="all-linear", **lora),
        )

    return build


@pytest.fixture
def manifest(tiny_llama):
    return write_manifest(tiny_llama, LANGUAGE)


@pytest.mark.parametrize("quantized", [False, True], ids=["fp32", "nf4"])
def test_an_sft_trainer_carries_out_assignments(quantized, sft, manifest, assign, handout, tmp_path):
    adapter = HFTrainerAdapter(sft(quantized=quantized))
    info = adapter.info(manifest)
    assert (info.rank, info.num_examples) == (4, 16)
    assert info.quantization is (Quantization.NF4 if quantized else Quantization.FP32)
    start, seen = handout(manifest, 4), []
    before = run(adapter, assign(4, kind=AssignmentKind.EVALUATE), start).metrics["loss"]
    result = run(adapter, assign(4, batch_size=8, epochs=3, learning_rate=1e-2), start, seen.append)
    assert [(p.step, p.steps) for p in seen] == [(step, 6) for step in range(1, 7)]
    trained = AdapterTensors({}, start.slots + result.update.slots)
    assert run(adapter, assign(4, kind=AssignmentKind.EVALUATE), trained).metrics["loss"] < before - 0.1
    assert not list(tmp_path.iterdir())


def test_rounds_leave_no_trace_and_the_rank_may_change(sft, manifest, assign, handout):
    adapter = HFTrainerAdapter(sft(lora_alpha=3, use_rslora=True))
    adapter.info(manifest)
    start = handout(manifest, 4, size=0.1)
    first = run(adapter, assign(4, batch_size=4, seed=3), start).update.slots
    other = run(adapter, assign(2, slots=4, batch_size=4, seed=3), start).update.slots
    again = run(adapter, assign(4, batch_size=4, seed=3), start).update.slots
    assert other.shape == (2, first.shape[1])
    assert np.array_equal(first, again)


def test_the_first_step_is_not_pulled_and_later_ones_are(sft, manifest, assign, handout):
    adapter = HFTrainerAdapter(sft())
    adapter.info(manifest)
    start, moved = handout(manifest, 4), {}
    for steps in (1, 4):
        for mu in (0.0, 10.0):
            given = assign(4, batch_size=4, epochs=3, max_steps=steps, learning_rate=1e-2, proximal_mu=mu)
            moved[steps, mu] = run(adapter, given, start).update.slots
    assert np.array_equal(moved[1, 0.0], moved[1, 10.0])
    assert np.linalg.norm(moved[4, 0.0]) > 1.2 * np.linalg.norm(moved[4, 10.0]) > 0


def test_a_frozen_factor_is_not_in_the_update(sft, manifest, assign, handout):
    adapter = HFTrainerAdapter(sft())
    adapter.info(manifest)
    update = run(adapter, assign(4, batch_size=8, frozen_factors=(Factor.A,)), handout(manifest, 4)).update
    assert update.slots.shape == (4, sum(module.out_features for module in manifest.low_rank))
    assert update.slots.any()


def test_the_users_settings_and_callbacks_come_back(sft, manifest, assign, handout):
    trainer = sft()
    args, callbacks = trainer.args, [type(c) for c in trainer.callback_handler.callbacks]
    adapter = HFTrainerAdapter(trainer)
    adapter.info(manifest)
    run(adapter, assign(4, max_steps=1), handout(manifest, 4))
    assert trainer.args is args
    assert sorted(map(str, callbacks)) == sorted(str(type(c)) for c in trainer.callback_handler.callbacks)
    assert trainer.optimizer is None


def test_cancelling_stops_after_a_step(sft, manifest, assign, handout):
    adapter, seen = HFTrainerAdapter(sft()), []
    adapter.info(manifest)
    with pytest.raises(Cancelled):
        run(adapter, assign(4, batch_size=4), handout(manifest, 4), seen.append, lambda: len(seen) >= 1)
    assert len(seen) == 2


def test_an_installed_adapter_is_in_the_users_model(sft, manifest, handout):
    trainer = sft()
    adapter = HFTrainerAdapter(trainer)
    adapter.info(manifest)
    batch = {"input_ids": torch.tensor([[4, 5, 6]])}
    adapter.install(handout(manifest, 4), 4)
    before = trainer.model(**batch).logits
    adapter.install(handout(manifest, 4, size=0.5), 4)
    assert trainer.model is adapter.model
    assert not torch.allclose(before, trainer.model(**batch).logits, atol=1e-3)


def test_a_plain_trainer_trains_a_classifier_with_its_head(tiny_bert, tmp_path, assign, handout):
    task = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16)
    manifest = write_manifest(tiny_bert, task)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    rows = datasets.Dataset.from_list(
        [{**tokenizer("good film" if i % 2 else "bad"), "labels": i % 2} for i in range(8)]
    )
    trainer = transformers.Trainer(
        transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2),
        transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], per_device_train_batch_size=4),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    adapter = HFTrainerAdapter(trainer, rank=2)
    adapter.info(manifest)
    update = run(adapter, assign(2, batch_size=4), handout(manifest, 2)).update
    assert update.slots.any()
    assert all(value.any() for value in update.dense.values())


@pytest.mark.parametrize("method", ["lora", "head", "adapter", "bitfit", "full"])
def test_a_model_that_a_run_tuned_in_place_takes_part_in_no_other(method, tiny_bert, tmp_path, handout):
    """It is no longer the base that its fingerprint says; LoRA alone is taken off, and a fresh head starts anew."""
    task = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer = transformers.Trainer(model, args=args, train_dataset=[{"input_ids": [2, 3], "labels": 1}])
    manifest = write_manifest(tiny_bert, task, method=METHODS[method](), rank_max=4)
    adapter = HFTrainerAdapter(trainer, base=tiny_bert)
    adapter.info(manifest)
    adapter.install(handout(manifest, 4 if manifest.low_rank else 0, size=0.1), 4)
    adapter.info(manifest)

    later = write_manifest(tiny_bert, task)
    if method in ("lora", "head"):
        HFTrainerAdapter(trainer, base=tiny_bert).info(later)
        return
    for again in (adapter, HFTrainerAdapter(trainer, base=tiny_bert)):
        with pytest.raises(BaseModelError, match="load it anew"):
            again.info(later)


def test_another_base_is_refused(sft, manifest, tiny_bert):
    adapter = HFTrainerAdapter(sft(), base=tiny_bert)
    with pytest.raises(BaseModelError, match="the run tunes 'tiny-llama'"):
        adapter.info(manifest)


def test_a_run_that_pools_by_itself_is_refused(sft, manifest):
    task = dataclasses.replace(manifest.task, pooling=Pooling.MEAN)
    with pytest.raises(ConfigError, match="pools by"):
        HFTrainerAdapter(sft()).info(dataclasses.replace(manifest, task=task))


def test_a_model_in_float16_is_refused(sft):
    trainer = sft()
    trainer.model = trainer.model.unload().half()
    with pytest.raises(ConfigError, match="float16"):
        HFTrainerAdapter(trainer)
