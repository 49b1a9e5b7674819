"""Prefix tuning: trained keys and values that every layer attends to besides those of the text.

Layer ``l`` attends with the text's queries to ``[P_l^K; K]`` and ``[P_l^V; V]``; ``P_l`` of ``length`` tokens is one
dense tensor, so that a round can train and send single layers. The text's positions begin behind the prefix.

The prefix goes into the model as a transformers cache, as PEFT 0.21 puts it: transformers 5.23 lets decoders and
BERT's kin alike attend to one, and both give the same result (a test compares). PEFT's own prefix is not used, since
it is one tensor ``[length, layers·2·width]`` for all layers, and its model for feature extraction drops token types.

*Reparametrised*, a device trains ``P = handed + f_θ(E) − f_θ₀(E)`` through an MLP ``f`` that is fresh in every round;
what it sends is the change of ``P``, never the MLP.

Reference: Li and Liang, "Prefix-Tuning", 2021, arXiv:2101.00190, section 4; Liu et al., "P-Tuning v2", 2022,
arXiv:2110.07602, section 3.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from peft import PrefixEncoder, PrefixTuningConfig
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from edge_client.errors import ConfigError
from edge_client.methods.dense import DenseOffsets, DenseTuner
from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from edge_client.methods.virtual_tokens import body_of, check_length, check_subject, count_in, install, named_call
from protocol.initializers import Distribution, Initializer
from protocol.manifest import DenseTensor, Quantization
from protocol.payload import AdapterTensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from edge_client.methods.scaling import LoraSettings
    from edge_client.model.task_model import TaskModel
    from protocol.manifest import Manifest
    from protocol.payload import Layout

__all__ = ["PREFIX", "Prefix"]

PREFIX = "prefix"
"""Layer ``l``'s tensor is ``prefix.l``, fp32 ``[2, length, key-value heads · head size]``: keys, then values."""
_INITIAL_SCALE = 1.0
"""Standard deviation of fresh keys and values, as in P-tuning v2's released code."""
_HIDDEN = 512
"""Width of the reparametrising MLP, as in the released FedPETuning."""


@dataclass(frozen=True, kw_only=True)
class Prefix(Method):
    """Trained keys and values before each layer's own.

    Raises:
        ConfigError: A setting has a value that it cannot have.
    """

    length: int = 20
    """Tokens."""
    reparametrised: bool = False
    """Whether devices train them through an MLP, which steadies training at high rates."""

    name: ClassVar[str] = "prefix"
    quantizations: ClassVar[frozenset[Quantization]] = frozenset(Quantization)

    def __post_init__(self) -> None:
        check_length(self.name, self.length)
        if not isinstance(self.reparametrised, bool):
            raise ConfigError(f"method 'prefix': reparametrised: expected true or false, got {self.reparametrised!r}")

    def declare(self, subject: Subject) -> Trainables:
        """See :meth:`edge_client.methods.interface.Method.declare`."""
        check_subject(self.name, self.length, subject, "past_key_values")
        config = body_of(subject.backbone).config
        _check_attention(config)
        heads, size = _heads(config)
        names = [f"{PREFIX}.{layer}" for layer in range(config.num_hidden_layers)]
        return Trainables(
            dense=tuple(
                DenseTensor(
                    name=name,
                    shape=(2, self.length, heads * size),
                    initializer=Initializer(
                        distribution=Distribution.NORMAL, scale=_INITIAL_SCALE, seed=subject.seed_of(name)
                    ),
                )
                for name in names
            )
        )

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """See :meth:`edge_client.methods.interface.Method.tuner`."""
        del lora
        prefixes = _Prefixes(body_of(model.backbone), self.length)
        install(model.backbone, PREFIX, prefixes)
        if self.reparametrised:
            return _ReparametrisedTuner(model, manifest, prefixes)
        return DenseTuner(model, manifest)


class _Prefixes(nn.ParameterList):
    """All layers' keys and values, which every call of the body attends to.

    Args:
        body: The transformer, without heads.
        length: Tokens.
    """

    def __init__(self, body: PreTrainedModel, length: int) -> None:
        heads, size = _heads(body.config)
        shape = 2, length, heads * size
        super().__init__(
            nn.Parameter(torch.zeros(shape, device=body.device), requires_grad=False)
            for _ in range(body.config.num_hidden_layers)
        )
        self._heads, self._length = heads, length
        self.reparametrisation: _Reparametrisation | None = None
        body.register_forward_pre_hook(self._insert, with_kwargs=True)

    def _insert(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        if body.training and body.is_activation_checkpointing:
            raise ConfigError("method 'prefix': gradient checkpointing leaves out keys and values: switch it off")
        call = named_call(body, args, kwargs)
        if call.get("past_key_values") is None:
            call["past_key_values"] = DynamicCache(config=body.config)
        if call["past_key_values"].get_seq_length() == 0:
            inputs = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
            self._fill(call["past_key_values"], len(inputs), body.get_input_embeddings().weight.dtype)
        count_in(call, self._length)
        return (), call

    def changes(self) -> dict[int, Tensor]:
        """What is added to the parameters of a layer, ``[2, length, width]``; nothing where there is no network."""
        return {} if self.reparametrisation is None else self.reparametrisation()

    def _fill(self, cache: Any, batch: int, dtype: torch.dtype) -> None:
        changes = self.changes()
        for layer, handed in enumerate(self):
            prefix = handed + changes[layer] if layer in changes else handed
            by_head = prefix.to(dtype).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            keys, values = by_head.unsqueeze(1).expand(-1, batch, -1, -1, -1)
            cache.update(keys, values, layer)


class _Reparametrisation(nn.Module):
    """The change ``f_θ(E) − f_θ₀(E)`` of some layers' prefixes: zero as made.

    Args:
        layers: Which.
        shape: Of one layer's prefix, ``(2, length, width)``.
        seed: Of ``θ₀``, which ``E`` is a part of.
        device: Where to.
    """

    origin: Tensor

    def __init__(self, layers: Sequence[int], shape: Sequence[int], seed: int, device: torch.device) -> None:
        super().__init__()
        self._layers, (_, self._length, self._width) = tuple(layers), shape
        config = PrefixTuningConfig(
            num_virtual_tokens=self._length,
            token_dim=self._width,
            num_layers=len(layers),
            encoder_hidden_size=_HIDDEN,
            prefix_projection=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder: Any = PrefixEncoder
            self.encoder = encoder(config).to(device)
        with torch.no_grad():
            self.register_buffer("origin", self._encoded())

    def forward(self) -> dict[int, Tensor]:
        """Changes by layer, each ``[2, length, width]``."""
        change = (self._encoded() - self.origin).view(self._length, len(self._layers), 2, self._width)
        return dict(zip(self._layers, change.permute(1, 2, 0, 3), strict=True))

    def _encoded(self) -> Tensor:
        encoded: Tensor = self.encoder(torch.arange(self._length, device=self.encoder.embedding.weight.device))
        return encoded


class _ReparametrisedTuner:
    """Implements :class:`edge_client.methods.interface.Tuner`: optimises the MLP, gives the prefixes that it makes.

    Args:
        model: Base model with head, frozen, and with the prefixes in it.
        manifest: Names the tensors.
        prefixes: Those in the model.
    """

    def __init__(self, model: TaskModel, manifest: Manifest, prefixes: _Prefixes) -> None:
        self._model, self._prefixes = model, prefixes
        self._dense = DenseOffsets(model, manifest.dense)

    @property
    def model(self) -> nn.Module:
        """The base model."""
        return self._model.backbone

    def load(self, handout: AdapterTensors, rank: int, active: Layout) -> list[nn.Parameter]:
        """See :meth:`edge_client.methods.interface.Tuner.load`; ``θ₀`` is a function of the prefixes handed out."""
        del rank
        layers, others = _split(active)
        parameters = self._dense.load(handout.dense, others)
        self._prefixes.reparametrisation = None
        if layers:
            first = self._prefixes[0]
            made = _Reparametrisation(layers, first.shape, self._fresh_seed(), first.device)
            self._prefixes.reparametrisation = made
            parameters += made.parameters()
        return parameters

    def change(self, active: Layout) -> AdapterTensors:
        """See :meth:`edge_client.methods.interface.Tuner.change`."""
        layers, others = _split(active)
        with torch.no_grad():
            changes = self._prefixes.changes()
        found = self._dense.change(others)
        found |= {f"{PREFIX}.{layer}": np.array(changes[layer].cpu().numpy()) for layer in layers}
        return AdapterTensors({tensor.name: found[tensor.name] for tensor in active.dense}, active.zeros(0).slots)

    def _fresh_seed(self) -> int:
        """Another one whenever something else is handed out, and the same on every device."""
        digest = hashlib.sha256()
        for prefix in self._prefixes:
            digest.update(prefix.detach().cpu().numpy().tobytes())
        return int.from_bytes(digest.digest()[:7])


def _split(active: Layout) -> tuple[list[int], list[str]]:
    """The layers whose prefixes are active, and the names of the other active dense tensors."""
    names = [tensor.name for tensor in active.dense]
    prefixes = [name for name in names if name.rpartition(".")[0] == PREFIX]
    return [int(name.rpartition(".")[2]) for name in prefixes], [name for name in names if name not in prefixes]


def _check_attention(config: PretrainedConfig) -> None:
    """Refuses layers without keys and values, and those whose shape differs, is latent or goes by a name of its own."""
    attend = all(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=config).layers)
    latent = getattr(config, "kv_lora_rank", None)
    unnamed = getattr(config, "multi_query", False) and not hasattr(config, "num_key_value_heads")
    if not attend or latent or unnamed or len({_heads(layer) for layer in config.per_layer_config}) > 1:
        raise ConfigError(
            f"method 'prefix': {config.model_type!r} models have layers without keys and values of their own, or with "
            "such of uncommon shapes: expected attention of one shape, heads times head size, in every layer"
        )


def _heads(config: Any) -> tuple[int, int]:
    """Heads that keys and values have, and the size of one."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
