"""The manifest: the immutable universe of one run, agreed on before the first round.

It names every trainable with its kind and shape, the base model by a fingerprint of its unquantised tensors, and
the task. A host that has the model writes it; a host without torch serves it. It is canonical JSON, so its SHA-256
is its identity.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from protocol import limits
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError
from protocol.initializers import Distribution, Initializer
from protocol.typed import Fields, Option, parse_json

__all__ = [
    "BaseModel",
    "DenseTensor",
    "LowRankModule",
    "Manifest",
    "Pooling",
    "Quantization",
    "Task",
    "TaskKind",
    "layer_of",
]

FORMAT = "tributary-manifest/2"


class Quantization(StrEnum):
    """How a device holds the frozen base model in memory."""

    NF4 = "nf4"
    INT8 = "int8"
    BF16 = "bf16"
    FP32 = "fp32"


class TaskKind(StrEnum):
    """What the model is tuned for; decides columns, loss and metric on the device."""

    CLASSIFICATION = "classification"
    """One text (``sentence``) or a pair (``sentence1``, ``sentence2``) and a label."""
    REGRESSION = "regression"
    """One text or a pair, and a number."""
    EMBEDDING = "embedding"
    """Pairs (``query``, ``target``) that belong together; contrastive loss over the batch."""
    CAUSAL_LM = "causal-lm"
    """``prompt`` and ``answer``; loss on the answer only. Or ``text``; loss on all of it."""
    IMAGE_CLASSIFICATION = "image-classification"
    """One image (``image``) and a label."""

    @property
    def labelled(self) -> bool:
        """Whether an example has one of the task's labels."""
        return self in (TaskKind.CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION)

    @property
    def on_images(self) -> bool:
        """Whether the model sees images; the others read texts."""
        return self is TaskKind.IMAGE_CLASSIFICATION


class Pooling(StrEnum):
    """How the states of tokens, or of an image's patches, become one vector."""

    MODEL = "model"
    """As the architecture's own head does it."""
    MEAN = "mean"
    """Mean over the tokens that are not padding, what most sentence encoders were trained with; or over the patches."""
    CLS = "cls"
    """The first token's state; an image has a class token there."""


@dataclass(frozen=True, kw_only=True)
class LowRankModule:
    """A linear map of the base model that is tuned through ``ΔW = B̂·A``."""

    name: str
    """Path of the module inside the base model, as ``named_modules`` gives it."""
    out_features: int
    """``m``, rows of ``B``."""
    in_features: int
    """``n``, columns of ``A``."""


@dataclass(frozen=True, kw_only=True)
class DenseTensor:
    """A tensor that is tuned as it is: a head, a bias, a prompt."""

    name: str
    """Path of the parameter inside the model, as ``named_parameters`` gives it without PEFT's wrappers."""
    shape: tuple[int, ...]
    """Its shape."""
    initializer: Initializer | None = None
    """Its starting value; None: the base model has it."""
    rank_min: int = 1
    """Lowest rank of a device that trains it; those below hold it as it was handed out."""

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Which base model the run tunes."""

    name: str
    """Hub id or folder name, for people; the fingerprint decides."""
    fingerprint: str
    """SHA-256 over the unquantised tensors, hex (:mod:`protocol.fingerprint`)."""
    architecture: str
    """Class of the transformers model that the devices build, such as ``BertModel``."""
    tokenizer_digest: str | None
    """SHA-256 of the tokenizer's files, hex; None for a task on images."""
    image_processor_digest: str | None = None
    """SHA-256 of the image processor's file, hex; None for a task on texts."""
    quantizations: tuple[Quantization, ...] = tuple(Quantization)
    """What devices of this run may hold the base in."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the run tunes for."""

    kind: TaskKind
    """Decides columns, loss and metric."""
    max_length: int = 128
    """Tokens after which a text is cut."""
    labels: tuple[str, ...] = ()
    """Label names in order of their index; empty unless ``kind`` is labelled."""
    pooling: Pooling = Pooling.MODEL
    """How the states of tokens or patches become one vector."""
    template: str | None = None
    """``str.format`` template over the columns that makes the prompt; None: the column ``prompt`` as it is."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The immutable universe of a run.

    Raises:
        LocalProtocolError: On construction with values outside :mod:`protocol.limits`.
    """

    base: BaseModel
    """The model that is tuned."""
    task: Task
    """What for."""
    rank_max: int
    """Highest LoRA rank any device may train; a stored hand-out holds at least this many slots."""
    low_rank: tuple[LowRankModule, ...] = ()
    """Modules tuned in product space, in the order they have on the wire."""
    dense: tuple[DenseTensor, ...] = ()
    """Tensors tuned as they are, in the order they have on the wire."""
    method: str = "lora"
    """Name of the tuning method (``edge_client.methods``)."""
    method_options: Mapping[str, Option] = field(default_factory=dict)
    """The method's settings, which all devices share."""
    format: str = field(default=FORMAT)
    """Version of this file format."""

    def __post_init__(self) -> None:
        faults = _faults(self)
        if faults:
            more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise LocalProtocolError("the manifest cannot be used: " + "; ".join(faults[:10]) + more)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every trainable in wire order: dense tensors, then low-rank modules."""
        return tuple(t.name for t in self.dense) + tuple(m.name for m in self.low_rank)

    def active(self, rank: int) -> tuple[str, ...]:
        """The trainables that a device of this rank trains, in wire order."""
        return tuple(t.name for t in self.dense if t.rank_min <= rank) + tuple(m.name for m in self.low_rank)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that any trainable belongs to, ascending."""
        return tuple(sorted({layer for layer in map(layer_of, self.names) if layer is not None}))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of :meth:`to_json`, hex: the manifest's identity on the wire."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The canonical form: UTF-8 JSON, sorted keys, no spaces."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Reads what :meth:`to_json` wrote, or the same with other white space.

        Args:
            data: UTF-8 JSON, at most :data:`protocol.limits.MANIFEST_MAX_BYTES`.

        Raises:
            RemoteProtocolError: Not a manifest of this version, or out of bounds; names the field.
        """
        fields = parse_json(data, limits.MANIFEST_MAX_BYTES, "manifest")
        if fields.text("format") != FORMAT:
            raise RemoteProtocolError(
                f"manifest: expected format {FORMAT!r}; write it again with `tributary-client manifest`",
                NackCode.INCOMPATIBLE,
            )
        try:
            manifest = cls(
                base=_base(fields.table("base")),
                task=_task(fields.table("task")),
                rank_max=fields.integer("rank_max"),
                method=fields.text("method"),
                method_options=fields.options("method_options", limits.METHOD_OPTIONS_MAX),
                low_rank=tuple(_module(f) for f in fields.tables("low_rank", limits.TENSORS_MAX)),
                dense=tuple(_dense(f) for f in fields.tables("dense", limits.TENSORS_MAX)),
            )
        except LocalProtocolError as error:
            raise RemoteProtocolError(str(error)) from error
        fields.finish()
        return manifest


def layer_of(name: str) -> int | None:
    """The layer that a trainable belongs to, as transformers and the tuning methods name them: from 0; None: to none.

    Example:
        >>> [layer_of(name) for name in ("prefix.3", "encoder.layer.11.output.dense", "classifier.weight")]
        [3, 11, None]
    """
    return next((int(part) for part in name.split(".") if part.isascii() and part.isdecimal()), None)


def _base(fields: Fields) -> BaseModel:
    base = BaseModel(
        name=fields.text("name"),
        fingerprint=fields.digest("fingerprint"),
        architecture=fields.text("architecture"),
        tokenizer_digest=fields.optional_digest("tokenizer_digest"),
        image_processor_digest=fields.optional_digest("image_processor_digest"),
        quantizations=tuple(fields.members("quantizations", Quantization)),
    )
    fields.finish()
    return base


def _task(fields: Fields) -> Task:
    task = Task(
        kind=fields.member("kind", TaskKind),
        max_length=fields.integer("max_length", minimum=1, maximum=1 << 20),
        labels=tuple(fields.texts("labels", limits.LABELS_MAX)),
        pooling=fields.member("pooling", Pooling),
        template=fields.optional_text("template", limit=limits.HEADER_MAX_BYTES),
    )
    fields.finish()
    return task


def _module(fields: Fields) -> LowRankModule:
    module = LowRankModule(
        name=fields.text("name"),
        out_features=fields.integer("out_features", minimum=1, maximum=limits.DIMENSION_MAX),
        in_features=fields.integer("in_features", minimum=1, maximum=limits.DIMENSION_MAX),
    )
    fields.finish()
    return module


def _dense(fields: Fields) -> DenseTensor:
    initializer = fields.optional_table("initializer")
    tensor = DenseTensor(
        name=fields.text("name"),
        shape=tuple(fields.integers("shape", count=8, maximum=limits.DIMENSION_MAX)),
        initializer=None if initializer is None else _initializer(initializer),
        rank_min=fields.integer("rank_min", minimum=1, maximum=limits.RANK_MAX),
    )
    fields.finish()
    return tensor


def _initializer(fields: Fields) -> Initializer:
    initializer = Initializer(
        distribution=fields.member("distribution", Distribution),
        scale=fields.number("scale", minimum=0.0, maximum=1e6),
        seed=fields.integer("seed", minimum=0, maximum=(1 << 63) - 1),
    )
    fields.finish()
    return initializer


def _faults(manifest: Manifest) -> list[str]:
    """All that is wrong with a manifest, so that it can be mended in one go."""
    found = []
    if not 1 <= manifest.rank_max <= limits.RANK_MAX:
        found.append(f"rank_max {manifest.rank_max} is not in 1..{limits.RANK_MAX}")
    if not manifest.low_rank and not manifest.dense:
        found.append("it declares nothing to train")
    if len(set(manifest.names)) != len(manifest.names):
        found.append("two trainables share one name")
    if len(manifest.names) > limits.TENSORS_MAX:
        found.append(f"it declares {len(manifest.names)} trainables, at most {limits.TENSORS_MAX} are allowed")
    found += [
        f"{name[:80]!r} is no name of 1..{limits.NAME_MAX_CHARS} characters"
        for name in manifest.names
        if not _fits(name)
    ]
    found += [
        f"{m.name[:80]!r}: {m.out_features} x {m.in_features} is not in 1..2**31 each way"
        for m in manifest.low_rank
        if not (_dimension(m.out_features) and _dimension(m.in_features))
    ]
    found += [
        f"{t.name[:80]!r}: shape {t.shape} is not one of at most 8 axes and 2**40 entries"
        for t in manifest.dense
        if len(t.shape) > 8 or not all(map(_dimension, t.shape)) or t.size > 1 << 40
    ]
    found += [f"{name!r} is a reserved name" for name in manifest.names if name in ("slots", "__metadata__")]
    found += [
        f"{t.name!r}: rank_min {t.rank_min} is not in 1..rank_max"
        for t in manifest.dense
        if not 1 <= t.rank_min <= max(1, manifest.rank_max)
    ]
    if len(manifest.method_options) > limits.METHOD_OPTIONS_MAX:
        found.append(
            f"it has {len(manifest.method_options)} method options, at most {limits.METHOD_OPTIONS_MAX} are allowed"
        )
    if not manifest.base.quantizations:
        found.append("no quantisation of the base is allowed")
    return found + _task_faults(manifest.task, manifest.base)


def _task_faults(task: Task, base: BaseModel) -> list[str]:
    found = []
    if task.kind.labelled and len(task.labels) < 2:
        found.append("a classification task needs at least two labels")
    if task.kind.labelled and len(set(task.labels)) != len(task.labels):
        found.append("two labels share one name")
    if task.kind.on_images and task.template is not None:
        found.append("a task on images has no template")
    needed = "image processor" if task.kind.on_images else "tokenizer"
    digests = {"tokenizer": base.tokenizer_digest, "image processor": base.image_processor_digest}
    if [name for name, digest in digests.items() if digest is not None] != [needed]:
        found.append(f"a {task.kind} task needs the digest of the base's {needed}, and no other's")
    return found


def _dimension(size: int) -> bool:
    return 1 <= size <= limits.DIMENSION_MAX


def _fits(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= limits.NAME_MAX_CHARS
