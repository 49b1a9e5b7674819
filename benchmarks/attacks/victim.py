"""The device under attack: what it trains on, and what of that the operator of the aggregator sees.

Two views. The *gradient* of the task's mean loss over one batch, of exactly the tensors that the method trains, is the
strongest thing that a step could show; SGD sends it. The *update* is what the product sends: the trainer's own AdamW
step on that batch, which is nearly the gradient's sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.attacks.settings import Arm
from benchmarks.command_line import BenchmarkError
from benchmarks.local import fresh_adapter, local_assignment, train_locally
from edge_client.data.tasks import Encoded, Example
from edge_client.methods import read_method
from edge_client.methods.scaling import LoraSettings
from edge_client.model.manifest_writer import write_manifest
from edge_client.model.quiet import quiet_forward
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from edge_client.training.objectives import Context
from protocol.assignment import AssignmentKind, LocalTraining
from protocol.manifest import Quantization, Task
from protocol.payload import AdapterTensors, Layout

__all__ = ["Rows", "Seen", "Victim", "View", "trained_parameters"]

Rows = Sequence[Mapping[str, str | int]]

_BACKBONE = "backbone."
_WARM_UP_STEPS = 30
_WARM_UP_BATCH = 8


class View(StrEnum):
    """What the operator is given."""

    GRADIENT = "gradient"
    UPDATE = "update"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the operator knows of one batch; with the texts' lengths and labels, more than it would by itself."""

    context: Context
    """The model as it was handed out."""
    tensors: Mapping[str, Tensor]
    """What came, by the names that the manifest gives; factors of ``module`` are ``module.A`` and ``module.B``."""
    lengths: Sequence[int]
    """Tokens of each text, special ones included."""
    labels: Sequence[int]
    """Label of each text."""


class Victim:
    """A device of a run, in fp32 and without dropout.

    Args:
        model: Hub id or folder of the base model, a BERT.
        arm: How the run tunes.
        task: What for.

    Raises:
        BenchmarkError: The attacks do not know the architecture.
    """

    def __init__(self, model: str, arm: Arm, task: Task) -> None:
        self._arm = arm
        method = read_method(arm.method, arm.options)
        self._manifest = write_manifest(model, task, method=method, rank_max=arm.rank)
        self._base = SharedBase(BaseSettings(model=model, quantization=Quantization.FP32, compute_dtype="fp32"))
        self._tuned = self._base.tuned(self._manifest, LoraSettings(), arm.rank, False)
        if self._tuned.context.model.backbone.config.model_type != "bert":
            raise BenchmarkError(
                f"expected a BERT, got a {self._manifest.base.architecture}: the attacks know no other"
            )

    def first_handout(self, seed: int) -> AdapterTensors:
        """What the first round starts from."""
        return fresh_adapter(self._manifest, self._arm.rank, seed)

    def later_handout(self, rows: Rows, seed: int) -> AdapterTensors:
        """What a later round starts from: after some steps on rows of others."""
        local = LocalTraining(
            learning_rate=self._arm.learning_rate,
            max_steps=_WARM_UP_STEPS,
            epochs=_WARM_UP_STEPS,
            batch_size=_WARM_UP_BATCH,
        )
        start = self.first_handout(seed)
        return train_locally(self._trainer(rows), start, rounds=1, local=local, seed=seed)

    def texts(self, rows: Rows) -> list[Sequence[int]]:
        """The rows' token ids, special ones included."""
        texts = (example.inputs[0] for example in self._tuned.preprocessor.encode(rows))
        return [text.ids for text in texts if isinstance(text, Encoded)]

    def special_tokens(self) -> frozenset[int]:
        """Ids that stand in every text, and tell nothing."""
        tokenizer: Any = self._tuned.preprocessor.processing_class
        return frozenset(tokenizer.all_special_ids)

    def see(self, view: View, rows: Rows, handout: AdapterTensors, seed: int) -> Seen:
        """What the operator is given when this device trains on these rows, all in one batch."""
        examples = self._tuned.preprocessor.encode(rows)
        sent = self._update(rows, handout, seed) if view is View.UPDATE else None
        self._tuned.tuner.load(handout, self._arm.rank, Layout.of(self._manifest))
        self._tuned.context.model.eval()
        return Seen(
            context=self._tuned.context,
            tensors=self._gradient(examples) if sent is None else sent,
            lengths=[example.length for example in examples],
            labels=[int(example.label) for example in examples],
        )

    def _gradient(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        named = trained_parameters(self._tuned.context.model)
        with quiet_forward():
            loss = self._tuned.objective.loss_sum(self._tuned.context, examples) / len(examples)
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}

    def _update(self, rows: Rows, handout: AdapterTensors, seed: int) -> dict[str, Tensor]:
        local = LocalTraining(learning_rate=self._arm.learning_rate, batch_size=len(rows), warmup_ratio=0.0)
        assignment = local_assignment(AssignmentKind.TRAIN, rank=self._arm.rank, local=local, seed=seed)
        trainer = self._trainer(rows)
        result = trainer.run(assignment, handout, cancelled=lambda: False, progress=lambda progress: None)
        if result.update is None:
            raise BenchmarkError(f"{self._arm.method}: the trainer sent no update")
        layout, sent = Layout.of(self._manifest), dict(result.update.dense)
        for module in layout.low_rank:
            b, a = layout.factors(result.update.slots, module.name)
            sent |= {f"{module.name}.B": b, f"{module.name}.A": a}
        return {name: torch.from_numpy(np.array(array)) for name, array in sent.items()}

    def _trainer(self, rows: Rows) -> TorchTrainer:
        trainer = TorchTrainer.sharing(self._base, list(rows), rank=self._arm.rank)
        trainer.info(self._manifest)
        return trainer


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, by the names of :attr:`Seen.tensors`."""
    return {_sent_name(name): value for name, value in model.named_parameters() if value.requires_grad}


def _sent_name(name: str) -> str:
    """PEFT's name of a factor, and torch's of what is in the base, as the manifest has it."""
    for factor in ("A", "B"):
        name = name.replace(f".lora_{factor}.default.weight", f".{factor}")
    return name.removeprefix(_BACKBONE)
