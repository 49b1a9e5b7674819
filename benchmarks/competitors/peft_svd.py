"""PEFT's own merge of adapters, as its users call it: ``add_weighted_adapter(combination_type="svd")``.

It multiplies every adapter out before it adds them up, so that it holds as many matrices as there are adapters.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.competitors.terms import Term

__all__ = ["PeftMerge"]


class PeftMerge:
    """A model of one linear map with an adapter for each term; made before the clock starts.

    Args:
        terms: What to merge.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        columns, rows = terms[0].A.shape[1], terms[0].B.shape[0]
        base = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False, device="meta"))
        base[0].weight = torch.nn.Parameter(torch.zeros(1).expand(rows, columns), requires_grad=False)
        self._names = [f"adapter{number}" for number in range(len(terms))]
        self._weights = [term.weight for term in terms]
        self._model = cast(Any, get_peft_model(base, _config(terms[0]), self._names[0]))
        for name, term in zip(self._names, terms, strict=True):
            if name != self._names[0]:
                self._model.add_adapter(name, _config(term))
            layer = self._model.base_model.model[0]
            layer.lora_B[name].weight.data = term.B
            layer.lora_A[name].weight.data = term.A

    def merge(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``B`` ``[m, k]`` and ``A`` ``[k, n]`` of the best approximation of a rank."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model.base_model.add_weighted_adapter(
                self._names, self._weights, "merged", combination_type="svd", svd_rank=rank
            )
        layer = self._model.base_model.model[0]
        B, A = layer.lora_B["merged"].weight.data, layer.lora_A["merged"].weight.data
        scaling = layer.scaling["merged"]
        self._model.delete_adapter("merged")
        return B * scaling, A


def _config(term: Term) -> LoraConfig:
    rank = term.A.shape[0]
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"])
