"""Makes NF4 layers right on a CPU, where bitsandbytes 0.50 goes wrong in two ways.

1. Where the CPU has AVX512-BF16, the first forward pass without gradients (an evaluation) repacks the weights for
   inference. Training afterwards fails on layers with a bias and silently gets no input gradient on others.
2. Where the CPU has AVX-512, ``dequantize_4bit`` takes rows for whole numbers of blocks: a layer whose ``in_features``
   is divisible by 16 but not by 64 gets weights scaled by other blocks' maxima, silently (relative error .2 to .4).

Both are avoided by dequantising the weight as one flat row, block after block as it was quantised, in the forward and
the backward pass. It costs what bitsandbytes does on a CPU anyway: dequantise, then multiply.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_blockwise
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

__all__ = ["dequantise", "mend_cpu_nf4"]


def mend_cpu_nf4(model: nn.Module) -> None:
    """Gives every 4-bit layer that lies on a CPU a forward pass of its own; layers elsewhere are left alone."""
    for module in model.modules():
        if isinstance(module, Linear4bit) and module.weight.device.type == "cpu":
            module.support_avx512bf16_for_cpu = False
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def dequantise(packed: Tensor, state: QuantState, dtype: torch.dtype) -> Tensor:
    """The weight that a 4-bit tensor stands for.

    Args:
        packed: uint8, two values each.
        state: Its shape, block size and block maxima.
        dtype: Of the result.

    Returns:
        ``[out_features, in_features]``.
    """
    shape = tuple(int(size) for size in state.shape)
    maxima = state.absmax
    if state.nested:
        maxima = dequantize_blockwise(state.absmax, state.state2) + state.offset
    flat = (1, shape[0] * shape[1])
    weight: Tensor = torch.ops.bitsandbytes.dequantize_4bit(
        packed, maxima.float(), state.blocksize, state.quant_type, flat, dtype
    )
    return weight.reshape(shape)


def _forward(module: Any, values: Tensor) -> Tensor:
    dtype = module.compute_dtype or values.dtype
    bias = None if module.bias is None else module.bias.to(dtype)
    multiply: Any = _FrozenLinear.apply
    output: Tensor = multiply(values.to(dtype), module.weight.data, module.weight.quant_state, bias)
    return output.to(values.dtype)


class _FrozenLinear(torch.autograd.Function):
    """``x·Wᵀ + b`` with gradients for ``x`` and ``b``, which dequantises ``W`` again rather than keep it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, packed: Tensor, state: QuantState, bias: Tensor | None) -> Tensor:
        ctx.packed, ctx.state = packed, state
        return nn.functional.linear(values, dequantise(packed, state, values.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        (grad,), (of_values, *_, of_bias) = grads, ctx.needs_input_grad
        values = grad @ dequantise(ctx.packed, ctx.state, grad.dtype) if of_values else None
        return values, None, None, grad.flatten(0, -2).sum(0) if of_bias else None
