"""Bottleneck adapters after Houlsby and Pfeiffer, at each device's own width.

An adapter follows the projection that a sublayer ends with, before the residual is added (and before the
normalisation, where that comes after). Houlsby has one behind attention and one behind the feed-forward network of
every layer, Pfeiffer the second alone. Of Pfeiffer's the placement is taken, not the additional pass through the
base's normalisation that their released adapters have; and where the base's own dropout is on, it comes after the
adapter, since the architectures agree on the projection and not on where their dropout lies.

**Mixed widths.** ``widths = (8, 16, 64)`` makes blocks of 8, 8 and 48 units (:mod:`edge_client.methods.bottleneck`).
A device's rank is its width: it trains the blocks that lie within it. Every device computes with all blocks, the
others frozen: the function is one and the same everywhere, and nothing is cut off or padded. What a narrower device
saves is gradients, optimizer state and upload, not hand-out and forward pass.

What the aggregator makes of it: a block moves by ``Σ p_i·d_i`` over the devices that trained it, ``p_i`` being shares
of the *whole* cohort. That is the weighted mean of the models that the devices end with, since one that does not train
a block ends with it as it was handed out. Where the holders have the weight ``P`` together, their block goes ``P``
times as far as their own mean would take it: it learns more slowly and is not shrunk, since what it has learnt stays
where it is when nobody trains it. Dividing by ``P`` instead would have few devices move the wide blocks as far as the
whole cohort moves the narrow ones, at lengths that depend on who was drawn, and what comes out would be no mean of
models that anybody trained. A run that wants its wide blocks to learn faster gives weight to wide devices.

Reference: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019, arXiv:1902.00751, section 2.1;
Pfeiffer et al., "AdapterFusion", 2021, arXiv:2005.00247, and "AdapterHub", 2020, arXiv:2007.07779.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import torch

from edge_client.errors import ConfigError
from edge_client.methods.bottleneck import ACTIVATIONS, CHILD, Bottleneck, install
from edge_client.methods.dense import DenseTuner
from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from protocol.initializers import Distribution, Initializer
from protocol.manifest import DenseTensor, Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edge_client.methods.scaling import LoraSettings
    from edge_client.model.task_model import TaskModel
    from protocol.manifest import Manifest

__all__ = ["Adapter"]


@dataclass(frozen=True)
class _Family:
    """Where architectures of one family have the projections that their sublayers end with."""

    layers: str
    """Path of the layers in the body."""
    attention: str
    """Path in a layer of attention's last projection."""
    feed_forward: str
    """Path in a layer of the feed-forward network's last projection."""


_BERT = _Family("encoder.layer", "attention.output.dense", "output.dense")
_LLAMA = _Family("layers", "self_attn.o_proj", "mlp.down_proj")
_FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        **dict.fromkeys(("bert", "electra", "roberta", "xlm-roberta"), _BERT),
        "mpnet": _Family("encoder.layer", "attention.attn.o", "output.dense"),
        "distilbert": _Family("transformer.layer", "attention.out_lin", "ffn.lin2"),
        **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
        "gpt2": _Family("h", "attn.c_proj", "mlp.c_proj"),
        "vit": _Family("layers", "attention.o_proj", "mlp.fc2"),
    }
)
"""By ``model_type`` of the transformers config."""

_PLACEMENTS = ("houlsby", "pfeiffer")


@dataclass(frozen=True, kw_only=True)
class Adapter(Method):
    """Bottleneck adapters beside the frozen base, at each device's own width.

    Raises:
        ConfigError: A setting has a value that it cannot have; all such are named.
    """

    widths: tuple[int, ...] | None = None
    """Units of the bottleneck on devices of each width, ascending; None: the run's highest rank, for all devices.
    Devices narrower than the first width train the first block, so that nobody trains nothing; others train what they
    have room for."""
    placement: str = "houlsby"
    """``"houlsby"``: behind attention and behind the feed-forward network; ``"pfeiffer"``: the second alone."""
    activation: str = "gelu"
    """``"gelu"``, ``"relu"`` or ``"silu"``."""

    name: ClassVar[str] = "adapter"
    quantizations: ClassVar[frozenset[Quantization]] = frozenset(Quantization)

    def __post_init__(self) -> None:
        faults = []
        if self.widths is not None and not _ascending(self.widths):
            faults.append(f"widths: expected a tuple of ascending whole numbers above 0, got {self.widths!r}")
        if self.placement not in _PLACEMENTS:
            faults.append(f"placement: expected one of {', '.join(_PLACEMENTS)}, got {self.placement!r}")
        if self.activation not in tuple(ACTIVATIONS):
            faults.append(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        if faults:
            raise ConfigError("; ".join(faults))

    def declare(self, subject: Subject) -> Trainables:
        """See :meth:`edge_client.methods.interface.Method.declare`."""
        widths, projections = self._widths(subject.rank_max), tuple(self._projections(subject.backbone))
        bottleneck = self._bottleneck(subject.backbone, subject.rank_max, torch.device("meta"))
        rank_min = {
            parameter: lowest
            for block, lowest in zip(bottleneck.blocks, (1, *widths[1:]), strict=True)
            for parameter in block.parameters()
        }
        return Trainables(
            dense=tuple(
                DenseTensor(
                    name=name,
                    shape=tuple(parameter.shape),
                    initializer=_initializer(name, tuple(parameter.shape), subject),
                    rank_min=rank_min[parameter],
                )
                for projection in projections
                for name, parameter in bottleneck.named_parameters(f"{projection}.{CHILD}")
            )
        )

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """See :meth:`edge_client.methods.interface.Method.tuner`."""
        del lora
        backbone = model.backbone
        for name in self._projections(backbone):
            projection = backbone.get_submodule(name)
            device = next(projection.parameters()).device
            install(projection, self._bottleneck(backbone, manifest.rank_max, device))
        return DenseTuner(model, manifest)

    def _widths(self, rank_max: int) -> tuple[int, ...]:
        widths = (rank_max,) if self.widths is None else self.widths
        if widths[-1] > rank_max:
            raise ConfigError(
                f"widths: no device of this run is wider than its rank_max {rank_max}, got {widths[-1]}: "
                "raise rank_max, or leave that width out"
            )
        return widths

    def _bottleneck(self, backbone: PreTrainedModel, rank_max: int, device: torch.device) -> Bottleneck:
        widths = self._widths(rank_max)
        blocks = [width - below for width, below in zip(widths, (0, *widths), strict=False)]
        return Bottleneck(backbone.config.hidden_size, blocks, self.activation, device)

    def _projections(self, backbone: PreTrainedModel) -> Iterator[str]:
        """Names of the projections that an adapter follows, layer by layer."""
        kind = backbone.config.model_type
        if kind not in _FAMILIES:
            raise ConfigError(f"method 'adapter': expected a model of type {', '.join(_FAMILIES)}, got {kind!r}")
        family, body = _FAMILIES[kind], backbone.base_model
        prefix = "" if body is backbone else f"{backbone.base_model_prefix}."
        for index in range(backbone.config.num_hidden_layers):
            layer = f"{prefix}{family.layers}.{index}"
            if self.placement == "houlsby":
                yield f"{layer}.{family.attention}"
            yield f"{layer}.{family.feed_forward}"


def _ascending(widths: object) -> bool:
    """Whether it is a tuple of whole numbers above 0, each above the one before."""
    if not isinstance(widths, tuple) or not widths or not all(type(width) is int for width in widths):
        return False
    return all(below < width for below, width in zip((0, *widths), widths, strict=False))


def _initializer(name: str, shape: tuple[int, ...], subject: Subject) -> Initializer:
    """Zeros, but for the weights ``D``: those have the variance of torch's own linear layers, ``1/(3n)``.

    The start is then the identity, and ``U`` has a gradient; with both at zero neither would ever have one.
    """
    if not name.endswith("down.weight"):
        return Initializer(distribution=Distribution.ZEROS)
    scale = 1.0 / math.sqrt(3 * shape[1])
    return Initializer(distribution=Distribution.NORMAL, scale=scale, seed=subject.seed_of(name))
