"""Lets a transformers ``Trainer`` or TRL ``SFTTrainer`` that the user already has do the local training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from peft import PeftModel
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from edge_client.errors import AggregatorError, BaseModelError, ConfigError, DataError
from edge_client.methods import Tuner, method_of
from edge_client.methods.scaling import LoraSettings
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.cpu_nf4 import mend_cpu_nf4
from edge_client.model.quiet import quiet_forward
from edge_client.model.task_model import TaskModel
from edge_client.trainer import Cancelled, LocalResult, Progress, TrainerInfo
from edge_client.training.proximal import ProximalTerm
from protocol.assignment import Assignment, AssignmentKind, LocalTraining
from protocol.manifest import Manifest, Pooling, Quantization
from protocol.payload import AdapterTensors, Layout

if TYPE_CHECKING:
    import transformers
    from torch import nn

__all__ = ["HFTrainerAdapter"]

_TUNED_IN_PLACE: WeakSet[transformers.PreTrainedModel] = WeakSet()
"""Bases with values or modules of a run in them: nobody can take those out again, as a LoRA is."""
_TIMINGS = ("runtime", "_per_second", "epoch", "num_tokens")


class HFTrainerAdapter:
    """Implements :class:`edge_client.trainer.Trainer` around a Hugging Face trainer.

    Model, data, collator, loss and per-device batch size stay the user's. Steps, learning rate, schedule, clipping,
    proximal term and seed come from each assignment, as the run's other devices have them; gradients are accumulated
    up to its batch size. Optimizer and schedule are fresh every round, and no checkpoints are written.

    Args:
        trainer: Its model is a plain transformers model, or a ``PeftModel`` with LoRA, whose rank, α and rsLoRA are
            then the defaults here; its adapter is replaced by the run's.
        base: Hub id or folder that the model was loaded from; None: what the model's config says.
        rank: LoRA rank to ask for; None: the ``PeftModel``'s, or the run's default.
        residual: Whether to take the part of the global update beyond ``rank`` as a frozen adapter.

    Raises:
        ConfigError: The model carries adapters other than one LoRA, or is held in a precision without a name here.
    """

    def __init__(
        self,
        trainer: transformers.Trainer,
        *,
        base: str | Path | None = None,
        rank: int | None = None,
        residual: bool = False,
    ) -> None:
        self._trainer: Any = trainer
        model: Any = trainer.model
        self._lora = LoraSettings()
        self._rank, self._residual = rank, residual
        if isinstance(model, PeftModel):
            config = _only_lora(model)
            self._lora = LoraSettings(lora_alpha=config.lora_alpha, use_rslora=config.use_rslora)
            self._rank = rank or config.r
            model = model.unload()
        mend_cpu_nf4(model)
        model.requires_grad_(False)
        self._base: transformers.PreTrainedModel = model
        self._source = base or str(model.config._name_or_path)
        self._quantization = _quantization_of(model)
        self._tuner: Tuner | None = None
        self._manifest: Manifest | None = None

    @property
    def model(self) -> nn.Module:
        """The ``PeftModel`` with the adapter last loaded; the plain base before the first one."""
        return self._base if self._tuner is None else self._tuner.model

    def info(self, manifest: Manifest) -> TrainerInfo:
        """Checks the model against the manifest and says what this device is.

        Raises:
            BaseModelError: It is not the run's base, or no longer: an earlier run tuned it in place.
            ConfigError: The run's task pools by itself, or does not allow this quantisation.
            DataError: The trainer has no training data.
        """
        if manifest != self._manifest:
            self._check(manifest)
            method, own = method_of(manifest), {name for name, _ in self._base.named_parameters()}
            if any(tensor.initializer is None or tensor.name not in own for tensor in manifest.dense):
                _TUNED_IN_PLACE.add(self._base)
            self._tuner = method.tuner(TaskModel(self._base, manifest.task), manifest, self._lora)
            self._manifest = manifest
        return TrainerInfo(
            fingerprint=manifest.base.fingerprint,
            quantization=self._quantization,
            rank=self._rank,
            residual=self._residual,
            num_examples=len(self._trainer.train_dataset),
        )

    def run(
        self,
        assignment: Assignment,
        handout: AdapterTensors,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> LocalResult:
        """Carries out one assignment; see :meth:`edge_client.trainers.torch_trainer.TorchTrainer.run`."""
        if assignment.kind is AssignmentKind.PROBE:
            raise AggregatorError(f"asked for the probe {assignment.probe!r}, which this version does not know")
        if self._tuner is None or self._manifest is None:
            raise ConfigError("call info(manifest) first")
        active = assignment.update_layout(self._manifest)
        self._load(handout, assignment.rank, active)
        if assignment.kind is AssignmentKind.EVALUATE:
            return self._evaluate()
        if cancelled():
            raise Cancelled
        watch, pull = _Watch(assignment.round, cancelled, progress), _Pull(assignment.local)
        with self._settings(assignment.local, assignment.seed), self._callbacks(watch, pull), quiet_forward():
            metrics = self._trainer.train().metrics
        if watch.stopped:
            raise Cancelled
        examples = len(self._trainer.train_dataset)
        return LocalResult(update=self._tuner.change(active), num_examples=examples, metrics=_numbers(metrics))

    def install(self, adapter: AdapterTensors, rank: int) -> None:
        """Puts an adapter into the model for use, in evaluation mode; call :meth:`info` first."""
        self._load(adapter, rank, Layout((), ()))
        self._trainer.model.eval()

    def _load(self, adapter: AdapterTensors, rank: int, active: Layout) -> None:
        if self._tuner is None:
            raise ConfigError("call info(manifest) first")
        self._tuner.load(adapter, rank, active)
        self._trainer.model = self._trainer.model_wrapped = self._tuner.model

    def _check(self, manifest: Manifest) -> None:
        if self._base in _TUNED_IN_PLACE:
            raise BaseModelError(
                "an earlier run tuned the trainer's model in place, which is no longer the base: load it anew, and "
                "make a trainer of it"
            )
        checkpoint = Checkpoint.find(self._source)
        if checkpoint.fingerprint() != manifest.base.fingerprint:
            raise BaseModelError(f"the trainer's model is {self._source!r}, the run tunes {manifest.base.name!r}")
        if type(self._base).__name__ != manifest.base.architecture:
            found = type(self._base).__name__
            raise BaseModelError(f"the run tunes a {manifest.base.architecture}, the trainer's model is a {found}")
        if manifest.task.pooling is not Pooling.MODEL:
            raise ConfigError(f"the run pools by {manifest.task.pooling!r}: use EdgeClient, which builds that model")
        if self._quantization not in manifest.base.quantizations:
            raise ConfigError(f"the run allows {', '.join(manifest.base.quantizations)}, not {self._quantization}")
        if self._trainer.train_dataset is None or not hasattr(self._trainer.train_dataset, "__len__"):
            raise DataError("the trainer has no training data of known length")

    @contextmanager
    def _settings(self, local: LocalTraining, seed: int) -> Iterator[None]:
        """Gives the trainer the assignment's settings, and its own back afterwards."""
        trainer, own = self._trainer, self._trainer.args
        args = trainer.args = copy.copy(own)
        args.learning_rate = local.learning_rate * local.learning_rate_scale
        args.num_train_epochs = local.epochs
        args.max_steps = -1 if local.max_steps is None else local.max_steps
        args.gradient_accumulation_steps = math.ceil(local.batch_size / args.train_batch_size)
        args.weight_decay, args.max_grad_norm = local.weight_decay, local.max_grad_norm
        args.lr_scheduler_type, args.warmup_steps = (
            type(args.lr_scheduler_type)("linear"),
            min(0.99, local.warmup_ratio),
        )
        args.seed = args.data_seed = seed % 2**32
        args.logging_strategy, args.logging_steps = type(args.logging_strategy)("steps"), 1
        args.save_strategy = type(args.save_strategy)("no")
        args.load_best_model_at_end = False
        trainer.optimizer = trainer.lr_scheduler = None
        try:
            with torch.random.fork_rng():
                yield
        finally:
            trainer.args = own
            trainer.optimizer = trainer.lr_scheduler = None

    @contextmanager
    def _callbacks(self, *added: TrainerCallback) -> Iterator[None]:
        """Adds callbacks; takes the console's away, which would print every step of every round."""
        taken = [self._trainer.pop_callback(kind) for kind in (PrinterCallback, ProgressCallback)]
        for callback in added:
            self._trainer.add_callback(callback)
        try:
            yield
        finally:
            for callback in added:
                self._trainer.remove_callback(callback)
            for callback in filter(None, taken):
                self._trainer.add_callback(callback)

    def _evaluate(self) -> LocalResult:
        own = self._trainer.eval_dataset
        data = self._trainer.train_dataset if own is None else own
        with self._callbacks(), quiet_forward():
            metrics = self._trainer.evaluate(eval_dataset=data if own is None else None)
        return LocalResult(update=None, num_examples=len(data), metrics=_numbers(metrics))


class _Watch(TrainerCallback):
    """Passes progress on, and stops between two steps when asked to."""

    def __init__(self, round_: int, cancelled: Callable[[], bool], progress: Callable[[Progress], None]) -> None:
        self._round, self._cancelled, self._progress = round_, cancelled, progress
        self.stopped = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps and self._cancelled():
            self.stopped = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            step = Progress(step=state.global_step, steps=state.max_steps, loss=float(logs["loss"]), round=self._round)
            self._progress(step)


class _Pull(TrainerCallback):
    """Adds FedProx's term to every step, and clips after it: the trainer tells of a step when it has clipped."""

    def __init__(self, local: LocalTraining) -> None:
        self._local = local

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if not self._local.proximal_mu:
            return
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        parameters = [parameter for group in inner.param_groups for parameter in group["params"]]
        term, args.max_grad_norm = ProximalTerm(parameters, self._local.proximal_mu), 0.0

        def before_step(*_: Any) -> None:
            term.add_gradient()
            if self._local.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(parameters, self._local.max_grad_norm)

        inner.register_step_pre_hook(before_step)


def _only_lora(model: PeftModel) -> Any:
    configs: list[Any] = list(model.peft_config.values())
    if len(configs) != 1 or getattr(configs[0], "lora_alpha", None) is None or configs[0].modules_to_save:
        raise ConfigError("the trainer's PeftModel: expected exactly one LoRA adapter without modules_to_save")
    return configs[0]


def _quantization_of(model: Any) -> Quantization:
    if getattr(model, "is_loaded_in_4bit", False):
        if model.config.quantization_config.bnb_4bit_quant_type != "nf4":
            raise ConfigError("the trainer's model is held in fp4: load it with bnb_4bit_quant_type='nf4'")
        return Quantization.NF4
    if getattr(model, "is_loaded_in_8bit", False):
        return Quantization.INT8
    known = {torch.bfloat16: Quantization.BF16, torch.float32: Quantization.FP32}
    if model.dtype not in known:
        raise ConfigError(f"the trainer's model is held in {model.dtype}: load it in bfloat16, float32, nf4 or int8")
    return known[model.dtype]


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """The finite metrics that are about learning, without their ``eval_`` prefix."""
    plain = {name.removeprefix("eval_"): value for name, value in metrics.items() if isinstance(value, (int, float))}
    kept = {n: float(v) for n, v in plain.items() if math.isfinite(v) and not any(part in n for part in _TIMINGS)}
    return {name: kept[name] for name in sorted(kept)[:16] if not name.startswith("total_flos")}
