"""The trainer that a device really uses: a transformers base, held quantised, tuned through PEFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edge_client.data.sources import open_rows
from edge_client.data.tasks import Example, encode_rows, encode_texts
from edge_client.errors import AggregatorError, BaseModelError, ConfigError, DataError
from edge_client.methods import Method, build_method
from edge_client.methods.lora import LoraSettings
from edge_client.model.base_model import load_backbone, load_tokenizer, resolve_compute_dtype, switch_off_dropout
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.quiet import quiet_forward
from edge_client.model.task_model import TaskModel
from edge_client.trainer import LocalResult, Progress, TrainerInfo
from edge_client.training.loop import train
from edge_client.training.objectives import Context, Objective, embed, objective_of
from protocol.assignment import Assignment, AssignmentKind
from protocol.manifest import Manifest, Quantization
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from transformers import PreTrainedTokenizerBase

__all__ = ["TorchTrainer"]

_EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class _Resident:
    """What stays in memory from round to round."""

    manifest: Manifest
    tokenizer: PreTrainedTokenizerBase
    method: Method
    objective: Objective
    context: Context
    training: Sequence[Example]
    evaluation: Sequence[Example]


class TorchTrainer:
    """Implements :class:`edge_client.trainer.Trainer` with torch, transformers, PEFT and bitsandbytes.

    Args:
        model: Hub id or folder of the base model.
        data: Training data: a ``datasets.Dataset``, a list of dicts, a torch ``Dataset`` of dicts, a JSONL or CSV
            file, or a folder with ``train.jsonl`` (and ``validation.jsonl``). None: this trainer only evaluates.
        eval_data: The same for evaluation; None: the folder's ``validation.jsonl`` if ``data`` is one, else ``data``.
        quantization: How to hold the base: ``nf4``, ``int8``, ``bf16`` or ``fp32``.
        rank: LoRA rank to ask for; None: the run's default.
        lora_alpha: PEFT's ``lora_alpha``; None: whatever makes the scaling ``s`` 2.
        use_rslora: ``s = α/√r`` instead of ``α/r``.
        residual: Whether to take the part of the global update beyond ``rank`` as a frozen adapter.
        micro_batch_size: Examples per forward pass; None: the whole batch. A contrastive loss needs the whole batch.
        device: torch device; None: ``cuda`` where there is one, else ``cpu``.
        compute_dtype: ``"fp32"``, ``"bf16"`` or ``"auto"``: bf16 on GPUs and CPUs that multiply it, fp32 on others.
        base_dropout: Whether the base's own dropout layers are on in training. Off, a step of a small encoder on a CPU
            takes about a quarter less time.

    Raises:
        ConfigError: Arguments are wrong; all of them are named.
    """

    def __init__(
        self,
        model: str | Path,
        data: object = None,
        *,
        eval_data: object = None,
        quantization: Quantization | str = Quantization.NF4,
        rank: int | None = None,
        lora_alpha: float | None = None,
        use_rslora: bool = False,
        residual: bool = False,
        micro_batch_size: int | None = None,
        device: str | None = None,
        compute_dtype: str = "auto",
        base_dropout: bool = False,
    ) -> None:
        _check(quantization=quantization, rank=rank, lora_alpha=lora_alpha, micro_batch_size=micro_batch_size)
        self._source = model
        self._data, self._eval_data = data, eval_data
        self._quantization = Quantization(quantization)
        self._rank, self._residual = rank, residual
        self._lora = LoraSettings(lora_alpha=lora_alpha, use_rslora=use_rslora)
        self._micro_batch_size = micro_batch_size
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._compute_dtype = resolve_compute_dtype(compute_dtype, self._device)
        self._base_dropout = base_dropout
        self._resident: _Resident | None = None

    @property
    def model(self) -> nn.Module:
        """The resident ``peft.PeftModel`` with the adapter last loaded; the plain base before the first one."""
        return self._ready().method.model

    def info(self, manifest: Manifest) -> TrainerInfo:
        """Loads base and data on first use, checks them against the manifest and says what this device is.

        Raises:
            BaseModelError: The base or its tokenizer is not the run's.
            ConfigError: The run does not allow this quantisation, or its method is unknown here.
            DataError: A row does not fit the task.
        """
        if self._resident is None or self._resident.manifest != manifest:
            self._resident = None  # so that two bases are never in memory at once
            self._resident = self._prepare(manifest)
        return TrainerInfo(
            fingerprint=manifest.base.fingerprint,
            quantization=self._quantization,
            rank=self._rank,
            residual=self._residual,
            num_examples=len(self._resident.training),
        )

    def run(
        self,
        assignment: Assignment,
        handout: AdapterTensors,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> LocalResult:
        """Carries out one assignment.

        Raises:
            Cancelled: ``cancelled()`` came true between two steps.
            DataError: There is no data for it.
            AggregatorError: The hand-out does not fit, or a probe is asked for that this version does not know.
            EdgeClientError: Training diverged.
        """
        if assignment.kind is AssignmentKind.PROBE:
            raise AggregatorError(f"asked for the probe {assignment.probe!r}, which this version does not know")
        resident = self._ready()
        active = assignment.update_layout(resident.manifest)
        parameters = resident.method.load(handout, assignment.rank, active)
        if assignment.kind is AssignmentKind.EVALUATE:
            return LocalResult(update=None, num_examples=len(resident.evaluation), metrics=self._evaluate(resident))
        if not resident.training:
            raise DataError("asked to train, but this device was given no data")
        resident.context.model.train()
        with quiet_forward():
            metrics = train(
                resident.context,
                resident.objective,
                resident.training,
                parameters,
                assignment,
                micro_batch_size=self._micro_batch_size,
                cancelled=cancelled,
                progress=progress,
            )
        update = resident.method.change(active)
        return LocalResult(update=update, num_examples=len(resident.training), metrics=metrics)

    def install(self, adapter: AdapterTensors, rank: int) -> None:
        """Puts an adapter into the resident model for use, in evaluation mode; call :meth:`info` first."""
        resident = self._ready()
        resident.method.load(adapter, rank, Layout((), ()))
        resident.context.model.eval()

    def embed(self, texts: Sequence[str], batch_size: int = _EVALUATION_BATCH) -> NDArray[np.float32]:
        """Unit vectors ``[len(texts), d]`` of an embedding run's model, with the adapter last loaded or installed."""
        resident = self._ready()
        encoded = encode_texts(texts, resident.manifest.task, resident.tokenizer)
        resident.context.model.eval()
        with torch.no_grad(), quiet_forward():
            vectors: NDArray[np.float32] = embed(resident.context, encoded, batch_size).numpy()
        return vectors

    def _ready(self) -> _Resident:
        if self._resident is None:
            raise ConfigError("the base model is not loaded yet: call info(manifest) first")
        return self._resident

    def _prepare(self, manifest: Manifest) -> _Resident:
        task = manifest.task
        if self._quantization not in manifest.base.quantizations:
            allowed = ", ".join(manifest.base.quantizations)
            raise ConfigError(f"quantization: the run allows {allowed}, this device is set to {self._quantization}")
        checkpoint = Checkpoint.find(self._source)
        _check_same_base(checkpoint, manifest)
        tokenizer = load_tokenizer(checkpoint)
        training, evaluation = self._examples(manifest, tokenizer)
        backbone = load_backbone(
            checkpoint,
            manifest,
            quantization=self._quantization,
            device=self._device,
            compute_dtype=self._compute_dtype,
        )
        if not self._base_dropout:
            switch_off_dropout(backbone)
        model = TaskModel(backbone, task)
        return _Resident(
            manifest=manifest,
            tokenizer=tokenizer,
            method=build_method(model, manifest, self._lora),
            objective=objective_of(task),
            context=Context(model=model, pad_id=int(tokenizer.pad_token_id), device=self._device),
            training=training,
            evaluation=evaluation,
        )

    def _examples(
        self, manifest: Manifest, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[Sequence[Example], Sequence[Example]]:
        def encoded(data: object, split: str) -> Sequence[Example]:
            return [] if data is None else encode_rows(open_rows(data, split), manifest.task, tokenizer)

        training = encoded(self._data, "train")
        if self._eval_data is not None:
            return training, encoded(self._eval_data, "validation")
        held_out = isinstance(self._data, (str, Path)) and (Path(self._data) / "validation.jsonl").is_file()
        return training, encoded(self._data, "validation") if held_out else training

    def _evaluate(self, resident: _Resident) -> dict[str, float]:
        if not resident.evaluation:
            raise DataError("asked to evaluate, but this device was given no data")
        resident.context.model.eval()
        with torch.no_grad(), quiet_forward():
            return resident.objective.evaluate(resident.context, resident.evaluation, self._evaluation_batch)

    @property
    def _evaluation_batch(self) -> int:
        return self._micro_batch_size or _EVALUATION_BATCH


def _check(*, quantization: str, rank: int | None, lora_alpha: float | None, micro_batch_size: int | None) -> None:
    faults = []
    if quantization not in list(Quantization):
        faults.append(f"quantization: expected one of {', '.join(Quantization)}, got {quantization!r}")
    for name, value in (("rank", rank), ("lora_alpha", lora_alpha), ("micro_batch_size", micro_batch_size)):
        if value is not None and not value > 0:
            faults.append(f"{name}: expected a number above 0, got {value}")
    if faults:
        raise ConfigError("; ".join(faults))


def _check_same_base(checkpoint: Checkpoint, manifest: Manifest) -> None:
    found, expected = checkpoint.fingerprint(), manifest.base.fingerprint
    if found != expected:
        raise BaseModelError(
            f"{checkpoint.name}: its weights have fingerprint {found[:12]}…, the run tunes {manifest.base.name} "
            f"with {expected[:12]}…: use that model"
        )
    if checkpoint.tokenizer_digest() != manifest.base.tokenizer_digest:
        raise BaseModelError(
            f"{checkpoint.name}: its tokenizer is not the one of {manifest.base.name} that the run uses"
        )
