"""The bottleneck adapter: a small residual network behind one projection of a base model, as a sum of blocks.

    y = h + b + Σ_k U_k·σ(D_k·h + d_k)

``h`` is what the projection gives, ``[…, n]``. Block ``k`` of ``w_k`` units is ``D_k [w_k, n]``, ``d_k [w_k]`` and
``U_k [n, w_k]``; the first one has ``b [n]`` besides. ``σ`` works unit by unit, so this is one bottleneck of ``Σ w_k``
units, parameter for parameter, cut into pieces that can be trained apart. With every ``U_k`` and ``b`` at zero it is
the identity.

Reference: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019, arXiv:1902.00751, section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "CHILD", "Block", "Bottleneck", "install"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"gelu": nn.functional.gelu, "relu": nn.functional.relu, "silu": nn.functional.silu}
)
"""``σ`` by name."""

CHILD = "adapter"
"""Name of an adapter in the projection that it follows."""


class Block(nn.Module):
    """``U·σ(D·h + d)``, with ``+ b`` in the first block.

    Args:
        hidden_size: ``n``.
        units: ``w``.
        activation: ``σ``, one of :data:`ACTIVATIONS`.
        output_bias: Whether it has ``b``.
    """

    def __init__(self, hidden_size: int, units: int, activation: str, *, output_bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, units)
        self.up = nn.Linear(units, hidden_size, bias=output_bias)
        self._activation = ACTIVATIONS[activation]

    def forward(self, states: Tensor) -> Tensor:
        """What the block adds to ``h``, fp32 ``[…, n]``."""
        added: Tensor = self.up(self._activation(self.down(states)))
        return added


class Bottleneck(nn.Module):
    """The adapter at one projection, frozen and all zeros until a hand-out is loaded.

    Args:
        hidden_size: ``n``.
        blocks: ``w_k`` of every block.
        activation: ``σ``, one of :data:`ACTIVATIONS`.
        device: torch device of its parameters.
    """

    def __init__(self, hidden_size: int, blocks: Sequence[int], activation: str, device: torch.device) -> None:
        super().__init__()
        with torch.device("meta"):  # where torch draws no numbers to start from
            self.blocks = nn.ModuleList(
                Block(hidden_size, units, activation, output_bias=index == 0) for index, units in enumerate(blocks)
            )
        self.to_empty(device=device)
        for parameter in self.parameters():
            nn.init.zeros_(parameter.requires_grad_(False))

    def forward(self, states: Tensor) -> Tensor:
        """``y`` in the dtype of ``h``, computed in fp32."""
        inputs = states.float()
        output = inputs
        for block in self.blocks:
            output = output + block(inputs)
        return output.to(states.dtype)


def install(projection: nn.Module, bottleneck: Bottleneck) -> None:
    """Sends all that a projection gives through an adapter.

    The adapter becomes a child of the projection, and the base's own parameters keep their names.
    """
    projection.add_module(CHILD, bottleneck)
    projection.register_forward_hook(_adapt)


def _adapt(projection: nn.Module, inputs: object, output: Tensor) -> Tensor:
    del inputs
    adapted: Tensor = projection.get_submodule(CHILD)(output)
    return adapted
