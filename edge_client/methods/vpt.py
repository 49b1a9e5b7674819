"""Deep visual prompts: fresh trained tokens at the input of every block of a vision transformer.

They stand behind the class token, ``[class, prompts, patches]``. What a block makes of its prompts is dropped from its
output, the last block's too, so that poolings find the states that they expect.

Reference: Jia et al., "Visual Prompt Tuning", 2022, arXiv:2203.12119, section 3.2 (VPT-Deep), equations 5 and 6.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from edge_client.errors import ConfigError
from edge_client.methods.dense import DenseTuner
from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from edge_client.methods.virtual_tokens import body_of, check_length, install
from protocol.initializers import Distribution, Initializer
from protocol.manifest import DenseTensor, Quantization

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from edge_client.methods.scaling import LoraSettings
    from edge_client.model.task_model import TaskModel
    from protocol.manifest import Manifest

__all__ = ["PROMPTS", "VPT"]

PROMPTS = "vpt"
"""Block ``l``'s tensor is ``vpt.l``, fp32 ``[length, hidden]``."""


@dataclass(frozen=True, kw_only=True)
class VPT(Method):
    """Trained tokens before the patches of every block.

    Raises:
        ConfigError: The length is none.
    """

    length: int = 10
    """Tokens a block; as many as in FedPEFT."""

    name: ClassVar[str] = "vpt"
    quantizations: ClassVar[frozenset[Quantization]] = frozenset(Quantization)

    def __post_init__(self) -> None:
        check_length(self.name, self.length)

    def declare(self, subject: Subject) -> Trainables:
        """See :meth:`edge_client.methods.interface.Method.declare`."""
        body = body_of(subject.backbone)
        if not isinstance(body, transformers.ViTModel):
            raise ConfigError(
                "method 'vpt': expected a vision transformer (ViTModel), whose blocks take prompts beside patches; "
                f"this is a {type(subject.backbone).__name__}"
            )
        scale = _scale(body.config)
        return Trainables(
            dense=tuple(
                DenseTensor(
                    name=name,
                    shape=(self.length, body.config.hidden_size),
                    initializer=Initializer(distribution=Distribution.UNIFORM, scale=scale, seed=subject.seed_of(name)),
                )
                for name in (f"{PROMPTS}.{block}" for block in range(len(body.layers)))
            )
        )

    def tuner(self, model: TaskModel, manifest: Manifest, lora: LoraSettings) -> Tuner:
        """See :meth:`edge_client.methods.interface.Method.tuner`."""
        del lora
        install(model.backbone, PROMPTS, _Prompts(body_of(model.backbone), self.length))
        return DenseTuner(model, manifest)


class _Prompts(nn.ParameterList):
    """All blocks' prompts, which every call of a block takes in and gives back without.

    Args:
        body: The vision transformer, without heads.
        length: Tokens a block.
    """

    def __init__(self, body: PreTrainedModel, length: int) -> None:
        blocks: Any = body.layers
        shape = length, body.config.hidden_size
        super().__init__(
            nn.Parameter(torch.zeros(shape, device=body.device), requires_grad=False) for _ in range(len(blocks))
        )
        self._length = length
        for index, block in enumerate(blocks):
            # Bound to this list, so that a copy of the whole model has prompts of its own.
            block.register_forward_pre_hook(partial(self._insert, index))
            block.register_forward_hook(self._drop)

    def _insert(self, index: int, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *others = args
        prompts = self[index].to(states.dtype).expand(len(states), -1, -1)
        return torch.cat((states[:, :1], prompts, states[:, 1:]), dim=1), *others

    def _drop(self, _: nn.Module, __: tuple[Any, ...], states: Tensor) -> Tensor:
        return torch.cat((states[:, :1], states[:, 1 + self._length :]), dim=1)


def _scale(config: PretrainedConfig) -> float:
    """``√(6/(3·patch² + hidden))``: Xavier's bound for a patch's projection, as in the paper's released code."""
    patch: Iterable[int] | int = config.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return math.sqrt(6.0 / (3 * height * width + config.hidden_size))
