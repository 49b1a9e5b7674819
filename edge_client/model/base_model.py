"""Loads a frozen base model in the precision that a device affords, ready to be trained through adapters."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from edge_client.errors import BaseModelError, ConfigError
from edge_client.model.checkpoint import Checkpoint
from edge_client.model.cpu_attention import mend_cpu_attention
from edge_client.model.cpu_nf4 import mend_cpu_nf4
from edge_client.model.quiet import quiet_loading
from protocol.manifest import Manifest, Pooling, Quantization, Task, TaskKind

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "absent_tensors",
    "is_bias",
    "is_linear",
    "load_backbone",
    "load_config",
    "load_image_processor",
    "load_tokenizer",
    "meta_backbone",
    "resolve_compute_dtype",
    "switch_off_dropout",
    "weight_owners",
]


def resolve_compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of activations and of what is not quantised.

    Args:
        name: ``"fp32"``, ``"bf16"`` or ``"auto"``: bf16 where the hardware multiplies it, else fp32. A CPU with AMX or
            AVX512-BF16 takes half as long for a bf16 product as for an fp32 one, without them two to three times as
            long.
        device: Where the model runs.

    Raises:
        ConfigError: Another name.
    """
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if name == "auto":
        return torch.bfloat16 if _multiplies_bf16(device) else torch.float32
    if name not in known:
        raise ConfigError(f"compute_dtype: expected 'auto', 'fp32' or 'bf16', got {name!r}")
    return known[name]


def load_config(checkpoint: Checkpoint, task: Task) -> PretrainedConfig:
    """The transformers config with the task's labels, and a padding token where a model of texts has none.

    Raises:
        BaseModelError: transformers does not know this architecture, or it sees images and the task is on texts, or
            the other way round.
    """
    extra: dict[str, Any] = {}
    if task.kind.labelled:
        extra = {"id2label": dict(enumerate(task.labels)), "problem_type": "single_label_classification"}
        extra["label2id"] = {label: index for index, label in enumerate(task.labels)}
    elif task.kind is TaskKind.REGRESSION:
        extra = {"num_labels": 1, "problem_type": "regression"}
    try:
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(checkpoint.folder, **extra)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{checkpoint.name}: {error}") from error
    _check_modality(checkpoint, config, task)
    if not task.kind.on_images and getattr(config, "pad_token_id", None) is None:
        tokenizer = load_tokenizer(checkpoint)
        config.pad_token_id = tokenizer.pad_token_id
    return config


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; one without a padding token pads with its end (or unknown) token.

    Raises:
        BaseModelError: There is none, or none of these tokens.
    """
    try:
        with quiet_loading():
            tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{checkpoint.name}: its tokenizer cannot be loaded ({error})") from error
    if tokenizer.pad_token_id is None:
        substitute = tokenizer.eos_token or tokenizer.unk_token
        if substitute is None:
            raise BaseModelError(f"{checkpoint.name}: its tokenizer has no padding, end or unknown token to pad with")
        tokenizer.pad_token = substitute
    tokenizer.padding_side = "right"
    return tokenizer


def load_image_processor(checkpoint: Checkpoint) -> BaseImageProcessor:
    """The checkpoint's image processor, on Pillow and NumPy: what it makes of an image is the same on every device.

    Raises:
        BaseModelError: There is none.
        ConfigError: Pillow is not installed.
    """
    try:
        with quiet_loading():
            untyped: Any = transformers.AutoImageProcessor
            processor: BaseImageProcessor = untyped.from_pretrained(
                checkpoint.folder, backend="pil", trust_remote_code=False
            )
    except ImportError as error:
        raise ConfigError("a task on images needs Pillow: pip install 'tributary-fl[vision]'") from error
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{checkpoint.name}: its image processor cannot be loaded ({error})") from error
    return processor


def meta_backbone(checkpoint: Checkpoint, task: Task) -> PreTrainedModel:
    """The transformers model that a task builds on, without weights (on the meta device).

    Raises:
        BaseModelError: The architecture has no such model.
    """
    config = load_config(checkpoint, task)
    try:
        with torch.device("meta"), quiet_loading():
            model: PreTrainedModel = _auto_class(task).from_config(config)
            unused = _unused_pooler(type(model), task)
            return type(model)(config, **unused) if unused else model
    except (ValueError, KeyError) as error:
        raise BaseModelError(
            f"{checkpoint.name} cannot be used for {task.kind}: {str(error).splitlines()[0]}"
        ) from error


def absent_tensors(checkpoint: Checkpoint, model: PreTrainedModel, task: Task) -> frozenset[str]:
    """Parameters of a model that a checkpoint does not have, or has in another shape: transformers would draw them.

    It is transformers that says so, which knows under how many names a checkpoint may have a tensor.

    Args:
        checkpoint: Where the weights lie.
        model: What :func:`meta_backbone` made of it.
        task: For which.

    Raises:
        BaseModelError: The weights cannot be read.
    """
    architecture: Any = type(model)
    try:
        with quiet_loading():
            _, report = architecture.from_pretrained(
                checkpoint.folder,
                config=model.config,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_unused_pooler(architecture, task),
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelError(f"{checkpoint.name} cannot be read: {error}") from error
    return _absent(report)


def load_backbone(
    checkpoint: Checkpoint,
    manifest: Manifest,
    *,
    quantization: Quantization,
    device: torch.device,
    compute_dtype: torch.dtype,
) -> PreTrainedModel:
    """Loads the base model, frozen.

    Args:
        checkpoint: Where its weights lie.
        manifest: The run, which says the task and which tensors are fresh.
        quantization: How to hold linear layers that are not heads.
        device: Where to.
        compute_dtype: Of activations and of what is not quantised; ``bf16`` and ``fp32`` name their own.

    Raises:
        BaseModelError: It cannot be loaded, is another architecture than the manifest's, or the checkpoint lacks a
            tensor that the manifest does not declare fresh.
    """
    task = manifest.task
    own = {Quantization.BF16: torch.bfloat16, Quantization.FP32: torch.float32}
    config = load_config(checkpoint, task)
    skeleton = meta_backbone(checkpoint, task)
    if type(skeleton).__name__ != manifest.base.architecture:
        raise BaseModelError(
            f"{checkpoint.name}: the run tunes a {manifest.base.architecture}, this is a {type(skeleton).__name__}"
        )
    skip = _unquantised(skeleton, (tensor.name for tensor in manifest.dense))
    try:
        with quiet_loading(), torch.random.fork_rng(devices=[]):
            architecture: Any = type(skeleton)
            loaded: tuple[PreTrainedModel, dict[str, Any]] = architecture.from_pretrained(
                checkpoint.folder,
                config=config,
                dtype=own.get(quantization, compute_dtype),
                device_map={"": str(device)},
                quantization_config=_bitsandbytes(quantization, compute_dtype, skip),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_unused_pooler(type(skeleton), task),
            )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise BaseModelError(f"{checkpoint.name} cannot be loaded as {quantization}: {error}") from error
    model, report = loaded
    _check_complete(checkpoint, manifest, report)
    mend_cpu_nf4(model)
    mend_cpu_attention(model)
    model.requires_grad_(False)
    return model


def switch_off_dropout(model: nn.Module) -> None:
    """Sets the probability of every dropout layer to zero."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def is_bias(name: str) -> bool:
    """Whether a parameter of this name is a bias."""
    return name.rpartition(".")[2] == "bias"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, quantised or not; GPT-2's ``Conv1D`` is one."""
    return isinstance(module, nn.Linear | Conv1D)


def weight_owners(names: Iterable[str]) -> set[str]:
    """Paths of the modules that own a parameter of these which is not a bias."""
    return {name.rpartition(".")[0] for name in names if not is_bias(name)}


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _auto_class(task: Task) -> Any:
    if task.kind is TaskKind.CAUSAL_LM:
        return transformers.AutoModelForCausalLM
    if task.kind.on_images and task.pooling is Pooling.MODEL:
        return transformers.AutoModelForImageClassification
    if task.kind in (TaskKind.CLASSIFICATION, TaskKind.REGRESSION) and task.pooling is Pooling.MODEL:
        return transformers.AutoModelForSequenceClassification
    return transformers.AutoModel


def _check_modality(checkpoint: Checkpoint, config: PretrainedConfig, task: Task) -> None:
    architecture = transformers.MODEL_MAPPING.get(type(config), None)
    takes = getattr(architecture, "input_modalities", "text")
    takes = {takes} if isinstance(takes, str) else set(takes)
    wanted = "image" if task.kind.on_images else "text"
    if wanted not in takes:
        raise BaseModelError(
            f"{checkpoint.name} is a {config.model_type} model, which takes {' and '.join(sorted(takes))}: "
            f"the task {task.kind} needs a model that takes {wanted}"
        )


def _unused_pooler(architecture: type[PreTrainedModel], task: Task) -> dict[str, Any]:
    """Leaves out a pooling layer that the task does not use: it would be loaded, run and never trained."""
    unused = task.kind is not TaskKind.CAUSAL_LM and task.pooling is not Pooling.MODEL
    known = "add_pooling_layer" in inspect.signature(architecture).parameters
    return {"add_pooling_layer": False} if unused and known else {}


def _unquantised(model: PreTrainedModel, dense: Iterable[str]) -> list[str]:
    """Modules to leave alone when quantising: owners of dense weights, everything outside the body, the LM head.

    Only linear layers are named for their weights: the quantiser takes a name for all that starts or ends with it.
    """
    owners = weight_owners(dense)
    inside = {id(module) for module in model.base_model.modules()}
    trained = {name for name, module in model.named_modules() if name in owners and is_linear(module)}
    outside = {name for name, module in model.named_modules() if id(module) not in inside and name}
    return sorted(trained | outside)


def _bitsandbytes(quantization: Quantization, compute_dtype: torch.dtype, skip: list[str]) -> Any:
    build: Any = transformers.BitsAndBytesConfig
    if quantization is Quantization.NF4:
        return build(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=skip,
        )
    if quantization is Quantization.INT8:
        return build(load_in_8bit=True, llm_int8_skip_modules=skip)
    return None


def _check_complete(checkpoint: Checkpoint, manifest: Manifest, report: dict[str, Any]) -> None:
    fresh = {tensor.name for tensor in manifest.dense if tensor.initializer is not None}
    unknown = sorted(_absent(report) - fresh)
    if unknown:
        raise BaseModelError(
            f"{checkpoint.name} lacks {unknown[0]!r}, for which the manifest has no initializer: every device would "
            "draw another value; write the manifest again from this checkpoint"
        )


def _absent(report: dict[str, Any]) -> frozenset[str]:
    return frozenset(report["missing_keys"]) | {key[0] for key in report["mismatched_keys"]}
