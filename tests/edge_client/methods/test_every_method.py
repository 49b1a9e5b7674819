"""Every method on every family of models, in fp32 and in NF4: what the README's table says is seen to be so."""

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn
from torch.nn import functional

import edge_client.methods
from edge_client.errors import ConfigError
from edge_client.methods import METHODS
from edge_client.methods.dense import DenseOffsets
from edge_client.methods.lora import Lora
from edge_client.methods.scaling import LoraSettings
from edge_client.model.base_model import load_backbone, switch_off_dropout
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.task_model import TaskModel
from protocol.codecs import Codec
from protocol.manifest import Manifest, Quantization, Task, TaskKind
from protocol.payload import AdapterTensors, Layout

LABELS = Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes"), max_length=16)
LANGUAGE = Task(kind=TaskKind.CAUSAL_LM, max_length=16)
PICTURES = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=("no", "yes"))
FAMILIES = {
    "BERT": ("tiny_bert", LABELS),
    "Llama": ("tiny_llama", LABELS),
    "Llama, causal-lm": ("tiny_llama", LANGUAGE),
    "GPT-2": ("tiny_gpt2", LABELS),
    "GPT-2, causal-lm": ("tiny_gpt2", LANGUAGE),
    "ViT": ("tiny_vit", PICTURES),
}
FEW_BITS, BEGINS_AS_THE_BASE = "NF4, int8", "begins as the base"
RANK, RANK_MAX = 2, 4
UNDONE_BY_THE_SOFTMAX = re.compile(r"\.(key|k_proj)\.bias$")
"""Parameters on which BERT's and ViT's attention does not depend: their gradient is rounding noise."""


def read_table() -> dict[str, dict[str, str]]:
    """The README's table of support: cells by method and column."""
    text = (Path(edge_client.methods.__file__).parent / "README.md").read_text(encoding="utf-8")
    lines = text.partition("## Which method goes with which model")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    header, _, *body = rows
    return {row[0].strip("`"): dict(zip(header[1:], row[1:], strict=True)) for row in body}


TABLE = read_table()


def refusal(method: str, family: str, held: Quantization) -> str | None:
    """What the table gives as the reason against a cell; None where it says yes."""
    row = TABLE.get(method, {})
    cells = [row.get(family, "yes"), row.get(FEW_BITS, "yes") if held is Quantization.NF4 else "yes"]
    return next((cell.removeprefix("no: ") for cell in cells if cell != "yes"), None)


CELLS = list(itertools.product(METHODS, FAMILIES, (Quantization.FP32, Quantization.NF4)))
SUPPORTED = [cell for cell in CELLS if refusal(*cell) is None]
REFUSED = [cell for cell in CELLS if refusal(*cell) is not None]


def test_the_table_has_a_row_for_every_method_and_a_column_for_every_family():
    assert set(TABLE) == set(METHODS)
    assert {column for row in TABLE.values() for column in row} == {*FAMILIES, FEW_BITS, BEGINS_AS_THE_BASE}


@pytest.mark.parametrize(("method", "family", "held"), REFUSED, ids=str)
def test_what_cannot_be_is_refused_with_the_reason(method, family, held, request):
    fixture, task = FAMILIES[family]
    with pytest.raises(ConfigError, match=re.escape(refusal(method, family, held))):
        write_manifest(request.getfixturevalue(fixture), task, method=METHODS[method](), quantizations=[held])


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base with the task's head as it starts, which no method has touched."""

    scores: Tensor
    """What it computes."""
    layers_in_few_bits: int
    """How many it has."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What two steps of one method came to."""

    base: Base
    manifest: Manifest
    at_first: Tensor
    """Scores with a hand-out that holds no change yet."""
    at_last: Tensor
    """Scores when trained."""
    loaded_again: Tensor
    """Scores with hand-out plus change."""
    gradients: Mapping[str, float]
    """Of each parameter to optimise, the largest entry over both steps."""
    dtypes: frozenset[torch.dtype]
    """Of the parameters to optimise."""
    parameters: int
    """Entries in them."""
    touched: frozenset[str]
    """Names of all parameters of the model that training changed."""
    change: AdapterTensors
    """From the hand-out."""
    left: AdapterTensors
    """The change from hand-out plus change, once that is loaded."""
    layers_in_few_bits: int
    """How many the model has then."""


def batch_of(task: Task) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if task.kind.on_images:
        return {"pixel_values": torch.randn(4, 3, 8, 8, generator=generator)}
    ids = torch.randint(4, 64, (4, 8), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def load(folder: Path, manifest: Manifest, held: Quantization) -> TaskModel:
    backbone = load_backbone(
        Checkpoint.find(folder),
        manifest,
        quantization=held,
        device=torch.device("cpu"),
        compute_dtype=torch.float32,
    )
    switch_off_dropout(backbone)
    return TaskModel(backbone, manifest.task)


def scores_of(model: TaskModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval().logits(batch)


def layers_in_few_bits(model: nn.Module) -> int:
    return sum(isinstance(module, Linear4bit) for module in model.modules())


@functools.cache
def manifest_of(method: str, folder: Path, task: Task) -> Manifest:
    return write_manifest(folder, task, method=METHODS[method](), rank_max=RANK_MAX)


def untouched(folder: Path, task: Task, held: Quantization) -> Base:
    manifest = manifest_of(Lora.name, folder, task)
    model = load(folder, manifest, held)
    DenseOffsets(model, manifest.dense).load(Layout.of(manifest).zeros(0).dense, ())
    return Base(scores=scores_of(model, batch_of(task)), layers_in_few_bits=layers_in_few_bits(model))


def train(folder: Path, manifest: Manifest, held: Quantization, handout: AdapterTensors, base: Base) -> Trained:
    model, batch, layout = load(folder, manifest, held), batch_of(manifest.task), Layout.of(manifest)
    tuner = METHODS[manifest.method](**manifest.method_options).tuner(model, manifest, LoraSettings())
    parameters = tuner.load(handout, RANK, layout)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    at_first = scores_of(model, batch)
    gradients: dict[str, float] = {}
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    model.train()
    for _ in range(2):
        scores = model.logits(batch).flatten(0, -2)
        functional.cross_entropy(scores, torch.arange(len(scores)) % 2).backward()
        for parameter in parameters:
            largest = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
            gradients[names[id(parameter)]] = max(largest, gradients.get(names[id(parameter)], 0.0))
        optimizer.step()
        optimizer.zero_grad()
    change, at_last = tuner.change(layout), scores_of(model, batch)
    touched = frozenset(name for name, after in model.named_parameters() if not torch.equal(after, before[name]))
    tuner.load(handout, RANK, layout)  # what was trained is gone; only the change has it
    again = AdapterTensors(
        {name: value + change.dense[name] for name, value in handout.dense.items()}, handout.slots + change.slots
    )
    tuner.load(again, RANK, layout)
    return Trained(
        base=base,
        manifest=manifest,
        at_first=at_first,
        at_last=at_last,
        loaded_again=scores_of(model, batch),
        gradients=gradients,
        dtypes=frozenset(parameter.dtype for parameter in parameters),
        parameters=sum(parameter.numel() for parameter in parameters),
        touched=touched,
        change=change,
        left=tuner.change(layout),
        layers_in_few_bits=layers_in_few_bits(model),
    )


@pytest.fixture(scope="module")
def bases() -> dict[tuple[str, Quantization], Base]:
    """Those made so far."""
    return {}


@pytest.fixture(scope="module", params=SUPPORTED, ids="-".join)
def trained(request: pytest.FixtureRequest, bases: dict, handout: Callable[..., AdapterTensors]) -> Trained:
    method, family, held = request.param
    fixture, task = FAMILIES[family]
    folder = request.getfixturevalue(fixture)
    if (family, held) not in bases:
        bases[family, held] = untouched(folder, task, held)
    manifest = manifest_of(method, folder, task)
    slots = RANK if manifest.low_rank else 0
    return train(folder, manifest, held, handout(manifest, slots), bases[family, held])


def test_a_run_begins_where_the_table_says(trained):
    begins = torch.allclose(trained.at_first, trained.base.scores, rtol=1e-4, atol=1e-5)
    assert begins == (TABLE[trained.manifest.method][BEGINS_AS_THE_BASE] == "yes")


def test_every_trainable_gets_a_gradient_and_moves(trained):
    still = {name for name, largest in trained.gradients.items() if not largest > 1e-7}
    assert {name for name in still if not UNDONE_BY_THE_SOFTMAX.search(name)} == set()
    assert trained.dtypes == {torch.float32}
    assert not torch.allclose(trained.at_first, trained.at_last)


def test_nothing_else_changes_and_what_is_in_few_bits_stays_so(trained):
    assert trained.touched <= set(trained.gradients)
    assert trained.layers_in_few_bits == trained.base.layers_in_few_bits


def test_what_travels_is_what_is_trained_and_no_byte_more(trained):
    layout = Layout.of(trained.manifest)
    declared = sum(tensor.size for tensor in layout.dense) + RANK * layout.width
    body = len(layout.encode(trained.change, Codec.FP32)) - len(layout.header(RANK, Codec.FP32))
    assert (trained.parameters, body) == (declared, 4 * declared)


def test_a_hand_out_with_the_change_computes_what_was_trained(trained):
    np.testing.assert_allclose(trained.loaded_again, trained.at_last, rtol=1e-4, atol=1e-5)
    assert not any(value.any() for value in (trained.left.slots, *trained.left.dense.values()))
