"""Whatever a run tunes, what it exports computes on a base model again what its devices were handed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from aggregator.adapters.export import ExportFormat, export_version
from aggregator.config import RunConfig
from aggregator.merge import Factors, GlobalState, Increment
from aggregator.runs import create_run
from aggregator.store.home import Home
from edge_client import ConfigError, load_exported
from edge_client.exported import save_merged
from edge_client.methods import METHODS, read_method
from edge_client.methods.scaling import LoraSettings
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.task_model import TaskModel
from edge_client.trainers.resident_base import BaseSettings, OwnBase, TunedModel
from protocol.manifest import Manifest, Pooling, Quantization, Task, TaskKind
from protocol.payload import AdapterTensors, Layout

# peft 0.21 still asks transformers 5.23 by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RANK = 2
LABELS = ("no", "maybe", "yes")
TASKS = {
    "bert": ("tiny_bert", Task(kind=TaskKind.CLASSIFICATION, labels=LABELS, max_length=16)),
    "pooled-bert": (
        "tiny_bert",
        Task(kind=TaskKind.CLASSIFICATION, labels=LABELS, max_length=16, pooling=Pooling.MEAN),
    ),
    "llama": ("tiny_llama", Task(kind=TaskKind.CAUSAL_LM, max_length=16)),
    "vit": ("tiny_vit", Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=LABELS)),
}
TEXTS = {
    "input_ids": torch.arange(4, 20).reshape(2, 8),
    "attention_mask": torch.tensor([[1] * 8, [1] * 6 + [0] * 2]),
}
IMAGES = {"pixel_values": torch.linspace(-1.0, 1.0, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)}
PLAIN = {
    "bert": transformers.AutoModelForSequenceClassification,
    "llama": transformers.AutoModelForCausalLM,
    "vit": transformers.AutoModelForImageClassification,
}
HEADS = {name: {"num_labels": len(LABELS)} for name in ("bert", "vit")}


@dataclass(frozen=True)
class Cell:
    """One method on one model, a state of such a run, and what was exported of it."""

    name: str
    base: Path
    manifest: Manifest
    state: GlobalState
    exported: Path

    def tuned(self, quantization: Quantization) -> TunedModel:
        """What a device of the run holds."""
        settings = BaseSettings(model=self.base, quantization=quantization, device="cpu", compute_dtype="fp32")
        return OwnBase(settings).tuned(self.manifest, LoraSettings(lora_alpha=7.0), RANK, residual=False)

    def handed_out(self) -> AdapterTensors:
        """The oracle: the state, cut to a rank by its singular values."""
        layout = Layout.of(self.manifest)
        tensors = layout.zeros(RANK)
        for name, module in self.state.low_rank.items():
            b, a = layout.factors(tensors.slots, name)
            top = module.svd.truncate(RANK)
            b[:], a[:] = top.U * top.S, top.Vt
        return AdapterTensors({name: np.float32(value) for name, value in self.state.dense.items()}, tensors.slots)

    def logits(self, model: Any) -> torch.Tensor:
        """Of a task model, or of one of transformers."""
        batch = IMAGES if self.manifest.task.kind.on_images else TEXTS
        with torch.no_grad():
            return model.logits(dict(batch)) if isinstance(model, TaskModel) else model(**batch).logits


Cells = Callable[[str], list[Cell]]


@pytest.fixture(scope="module")
def cells(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """Makes a method's cells: every model and task that it can tune."""

    @cache
    def make(method: str) -> list[Cell]:
        made = []
        for name, (fixture, task) in TASKS.items():
            base = request.getfixturevalue(fixture)
            try:
                manifest = write_manifest(base, task, method=read_method(method, {}), rank_max=4)
            except ConfigError:
                continue
            state, folder = random_state(manifest), tmp_path_factory.mktemp(f"{method}-{name}")
            home = create_run(folder / "home", RunConfig(run="run", default_rank=RANK), manifest, state)
            export_version(home, folder / "out", rank=RANK, format=ExportFormat.TRIBUTARY)
            made.append(Cell(name, base, manifest, state, folder / "out"))
        return made

    return make


def random_state(manifest: Manifest) -> GlobalState:
    """Of a higher rank than is exported, so that the export has something to leave out."""
    rng = np.random.default_rng(3)
    increment = Increment(
        low_rank={
            m.name: Factors(rng.standard_normal((m.out_features, 3)), 0.1 * rng.standard_normal((3, m.in_features)))
            for m in manifest.low_rank
        },
        dense={tensor.name: 0.2 * rng.standard_normal(tensor.shape) for tensor in manifest.dense},
    )
    return GlobalState.zeros(manifest).add(increment)


@pytest.mark.parametrize("method", METHODS)
def test_an_export_computes_what_a_device_of_the_run_does(method: str, cells: Cells) -> None:
    assert cells(method)
    for cell, quantization in product(cells(method), (Quantization.FP32, Quantization.NF4)):
        if quantization not in cell.manifest.base.quantizations:
            continue
        device = cell.tuned(quantization)
        device.tuner.load(Layout.of(cell.manifest).zeros(RANK), RANK, Layout((), ()))
        untouched = cell.logits(device.context.model.eval())
        device.tuner.load(cell.handed_out(), RANK, Layout((), ()))
        expected = cell.logits(device.context.model)
        assert (expected - untouched).abs().max() > 0.01, "the state changes nothing, so this tests nothing"
        loaded = load_exported(cell.exported, cell.base, quantization=quantization, device="cpu", compute_dtype="fp32")
        torch.testing.assert_close(cell.logits(loaded.task_model), expected, rtol=1e-4, atol=1e-4)
        assert not loaded.model.training
        assert not any(parameter.requires_grad for parameter in loaded.task_model.parameters())


def test_what_peft_can_hold_is_exported_for_peft_unless_told_otherwise(cells: Cells, tmp_path: Path) -> None:
    formats = {}
    for cell in cells("lora"):
        out = tmp_path / cell.name
        formats[cell.name] = export_version(Home(cell.exported.parent / "home"), out, rank=RANK).format
        if formats[cell.name] is ExportFormat.PEFT:
            base = PLAIN[cell.name].from_pretrained(cell.base, **HEADS.get(cell.name, {}))
            loaded = load_exported(cell.exported, cell.base, device="cpu")
            found = cell.logits(PeftModel.from_pretrained(base, out).eval())
            torch.testing.assert_close(found, cell.logits(loaded.task_model), rtol=1e-4, atol=1e-4)
    assert formats.pop("pooled-bert") is ExportFormat.TRIBUTARY, "PEFT would lose this head without a word"
    assert formats == dict.fromkeys(("bert", "llama", "vit"), ExportFormat.PEFT)


@pytest.mark.parametrize("method", METHODS)
def test_a_result_becomes_a_plain_checkpoint_or_the_reason_is_given(method: str, cells: Cells, tmp_path: Path) -> None:
    plain = set()
    for cell in cells(method):
        out = tmp_path / cell.name
        try:
            save_merged(cell.exported, cell.base, out)
        except ConfigError as error:
            assert "has no place" in str(error)
            assert not out.exists()
            continue
        loaded = load_exported(cell.exported, cell.base, device="cpu")
        merged = PLAIN[cell.name].from_pretrained(out).eval()
        torch.testing.assert_close(cell.logits(merged), cell.logits(loaded.task_model), rtol=1e-4, atol=1e-4)
        assert transformers.AutoProcessor.from_pretrained(out)
        plain.add(cell.name)
    in_place = {
        "full": {"bert", "llama", "vit"}, "bitfit": {"bert", "vit"}, "head": {"bert", "vit"},
        "lora": {"bert", "llama", "vit"},
    }  # fmt: skip
    assert plain == in_place.get(method, set())
