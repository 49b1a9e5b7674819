"""Makes training in bf16 on a CPU as fast as its attention allows.

PyTorch's fused attention for CPUs has a backward pass in bf16 that takes three to five times as long as the one in fp32
for texts of up to 128 tokens, a quarter of a small encoder's whole step (torch 2.13; 16 texts of 80 tokens, 12 heads of
32: 48 ms a layer against 13 ms). Where gradients are asked for, attention is computed in fp32 here; the memory it takes
stays linear in the length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["mend_cpu_attention"]

_NAME = "sdpa-fp32-gradients"


def mend_cpu_attention(model: PreTrainedModel) -> None:
    """Has a model in bf16 on a CPU compute attention so; models elsewhere, or with attention of their own, stay."""
    if model.device.type == "cpu" and model.dtype == torch.bfloat16 and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_NAME)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As transformers' ``sdpa_attention_forward``."""
    dtype = query.dtype
    if dtype == torch.bfloat16 and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
    output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return output.to(dtype), weights


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
