"""The trainer that a device really uses: a transformers base, held quantised, tuned through PEFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from edge_client.data.preprocessing import Preprocessor, TextPreprocessor
from edge_client.data.sources import has_split, open_rows
from edge_client.data.tasks import Example
from edge_client.errors import AggregatorError, ConfigError, DataError
from edge_client.methods.scaling import LoraSettings
from edge_client.model.quiet import quiet_forward
from edge_client.trainer import LocalResult, Progress, TrainerInfo
from edge_client.trainers.resident_base import BaseSettings, OwnBase, ResidentBase, SharedBase, TunedModel
from edge_client.training.loop import train
from edge_client.training.objectives import embed
from edge_client.training.probes import measure
from protocol.assignment import Assignment, AssignmentKind
from protocol.manifest import Manifest, Quantization
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["TorchTrainer"]

_EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class _Resident:
    """What stays in memory from round to round."""

    manifest: Manifest
    tuned: TunedModel
    training: Sequence[Example]
    evaluation: Sequence[Example]


class TorchTrainer:
    """Implements :class:`edge_client.trainer.Trainer` with torch, transformers, PEFT and bitsandbytes.

    Args:
        model: Hub id or folder of the base model.
        data: Training data: a ``datasets.Dataset``, a list of dicts, a torch ``Dataset`` of dicts, a JSONL, CSV or NPZ
            file, or a folder with ``train.jsonl`` or the like (and ``validation.jsonl``). None: this trainer only
            evaluates.
        eval_data: The same for evaluation; None: the folder's validation split if ``data`` is one that has it, else
            ``data``.
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
        noise_seed: Makes the noise and the batches of private training repeat: for simulations, since noise of a known
            seed protects nobody. None: the operating system's entropy.

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
        noise_seed: int | None = None,
    ) -> None:
        _check(quantization=quantization, rank=rank, lora_alpha=lora_alpha, micro_batch_size=micro_batch_size)
        self._base: ResidentBase = OwnBase(
            BaseSettings(
                model=model,
                quantization=Quantization(quantization),
                device=device,
                compute_dtype=compute_dtype,
                base_dropout=base_dropout,
            )
        )
        self._data, self._eval_data = data, eval_data
        self._rank, self._residual = rank, residual
        self._lora = LoraSettings(lora_alpha=lora_alpha, use_rslora=use_rslora)
        self._micro_batch_size = micro_batch_size
        self._secret = np.random.default_rng(noise_seed)
        self._resident: _Resident | None = None

    @classmethod
    def sharing(
        cls,
        base: SharedBase,
        data: object = None,
        *,
        eval_data: object = None,
        rank: int | None = None,
        lora_alpha: float | None = None,
        use_rslora: bool = False,
        residual: bool = False,
        micro_batch_size: int | None = None,
        noise_seed: int | None = None,
    ) -> Self:
        """A trainer with data, rank and scaling of its own, on a base that other trainers of this process tune too.

        It gives the very bits that one with a base of its own gives. Arguments and errors are those of the class.
        """
        settings = base.settings
        trainer = cls(
            settings.model,
            data,
            eval_data=eval_data,
            quantization=settings.quantization,
            rank=rank,
            lora_alpha=lora_alpha,
            use_rslora=use_rslora,
            residual=residual,
            micro_batch_size=micro_batch_size,
            device=settings.device,
            compute_dtype=settings.compute_dtype,
            base_dropout=settings.base_dropout,
            noise_seed=noise_seed,
        )
        trainer._base = base
        return trainer

    @property
    def model(self) -> nn.Module:
        """The resident ``peft.PeftModel`` with the adapter last loaded; the plain base before the first one."""
        return self._ready().tuned.tuner.model

    def info(self, manifest: Manifest) -> TrainerInfo:
        """Loads base and data on first use, checks them against the manifest and says what this device is.

        Raises:
            BaseModelError: The base or its tokenizer or image processor is not the run's.
            ConfigError: The run does not allow this quantisation, or its method is unknown here.
            DataError: A row does not fit the task.
        """
        if self._resident is None or self._resident.manifest != manifest:
            self._resident = None  # so that two bases are never in memory at once
            self._resident = self._prepare(manifest)
        return TrainerInfo(
            fingerprint=manifest.base.fingerprint,
            quantization=self._base.settings.quantization,
            rank=self._rank,
            residual=self._residual,
            num_examples=len(self._resident.training),
            private=True,
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
            AggregatorError: The hand-out does not fit, nothing is named to train, or a probe is asked for that this
                version does not know.
            EdgeClientError: Training diverged.
        """
        resident = self._ready()
        active = assignment.update_layout(resident.manifest)
        parameters = resident.tuned.tuner.load(handout, assignment.rank, active)
        if assignment.kind is AssignmentKind.PROBE:
            return self._probe(resident, parameters, assignment)
        if assignment.kind is AssignmentKind.EVALUATE:
            return LocalResult(update=None, num_examples=len(resident.evaluation), metrics=self._evaluate(resident))
        if not resident.training:
            raise DataError("asked to train, but this device was given no data")
        if not parameters:
            raise AggregatorError(f"round {assignment.round} names nothing to train")
        resident.tuned.context.model.train()
        with quiet_forward():
            metrics = train(
                resident.tuned.context,
                resident.tuned.objective,
                resident.training,
                parameters,
                assignment,
                micro_batch_size=self._micro_batch_size,
                cancelled=cancelled,
                progress=progress,
                secret=self._secret,
            )
        update = resident.tuned.tuner.change(active)
        return LocalResult(update=update, num_examples=len(resident.training), metrics=metrics)

    def install(self, adapter: AdapterTensors, rank: int) -> None:
        """Puts an adapter into the resident model for use, in evaluation mode; call :meth:`info` first."""
        resident = self._ready()
        resident.tuned.tuner.load(adapter, rank, Layout((), ()))
        resident.tuned.context.model.eval()

    def embed(self, texts: Sequence[str], batch_size: int = _EVALUATION_BATCH) -> NDArray[np.float32]:
        """Unit vectors ``[len(texts), d]`` of an embedding run's model, with the adapter last loaded or installed.

        Raises:
            ConfigError: The run's model takes images.
        """
        resident, preprocessor = self._ready(), self._ready().tuned.preprocessor
        if not isinstance(preprocessor, TextPreprocessor):
            raise ConfigError(f"embed() takes texts: a run of {resident.manifest.task.kind} tunes a model of images")
        encoded = preprocessor.encode_texts(texts)
        resident.tuned.context.model.eval()
        with torch.no_grad(), quiet_forward():
            vectors: NDArray[np.float32] = embed(resident.tuned.context, encoded, batch_size).numpy()
        return vectors

    def _ready(self) -> _Resident:
        if self._resident is None:
            raise ConfigError("the base model is not loaded yet: call info(manifest) first")
        return self._resident

    def _prepare(self, manifest: Manifest) -> _Resident:
        tuned = self._base.tuned(manifest, self._lora, self._rank, self._residual)
        training, evaluation = self._examples(tuned.preprocessor)
        return _Resident(manifest=manifest, tuned=tuned, training=training, evaluation=evaluation)

    def _examples(self, preprocessor: Preprocessor) -> tuple[Sequence[Example], Sequence[Example]]:
        def encoded(data: object, split: str) -> Sequence[Example]:
            return [] if data is None else preprocessor.encode(open_rows(data, split))

        training = encoded(self._data, "train")
        if self._eval_data is not None:
            return training, encoded(self._eval_data, "validation")
        held_out = has_split(self._data, "validation")
        return training, encoded(self._data, "validation") if held_out else training

    def _probe(self, resident: _Resident, parameters: Sequence[nn.Parameter], assignment: Assignment) -> LocalResult:
        tuned = resident.tuned
        with quiet_forward():
            report = measure(tuned.context, tuned.objective, resident.training, parameters, assignment)
        return LocalResult(update=None, num_examples=len(resident.training), metrics=report.metrics)

    def _evaluate(self, resident: _Resident) -> dict[str, float]:
        if not resident.evaluation:
            raise DataError("asked to evaluate, but this device was given no data")
        resident.tuned.context.model.eval()
        with torch.no_grad(), quiet_forward():
            return resident.tuned.objective.evaluate(
                resident.tuned.context, resident.evaluation, self._evaluation_batch
            )

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
