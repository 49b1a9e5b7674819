"""NVFlare's merge of mixed ranks: float32 QR of all factors at once, SVD of the core.

Written from what ``examples/advanced/medgemma/custom_aggregators.py`` of NVIDIA/NVFlare does (2026): both factors are
multiplied by the square root of their weight and stacked, ``B = U``, ``A = S·Vᵀ``. It takes no account of each
adapter's scaling; here that is folded into ``B`` beforehand, so that only speed, memory and precision are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from benchmarks.competitors.terms import Term

__all__ = ["merge_by_qr"]


def merge_by_qr(terms: Sequence[Term], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``B`` ``[m, k]`` and ``A`` ``[k, n]`` of the best approximation of a rank."""
    left = torch.cat([term.B * math.sqrt(term.weight) for term in terms], dim=1)
    right = torch.cat([term.A * math.sqrt(term.weight) for term in terms], dim=0)
    Q_left, R_left = torch.linalg.qr(left)
    Q_right, R_right = torch.linalg.qr(right.T)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.T, full_matrices=False)
    return Q_left @ U[:, :rank], torch.diag(S[:rank]) @ (Vh[:rank] @ Q_right.T)
