"""A step along the merged change, of a length that may decay over the rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from aggregator.merge import MergeError
from aggregator.merge.vectors import combine
from aggregator.optimizers.memory import Memory
from aggregator.optimizers.settings import check_positive

if TYPE_CHECKING:
    from aggregator.merge import GlobalState
    from protocol.manifest import Manifest

__all__ = ["Sgd"]


@final
@dataclass(frozen=True, kw_only=True)
class Sgd:
    """``ΔM = η_t·D`` with ``η_t = η / (1 + d·t)``, ``t`` from 0.

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295, section 2 (the server's view of
    FedAvg); a decaying step is what FedAvg needs to converge when clients differ (Li et al., 2020, arXiv:1907.02189).
    """

    learning_rate: float = 1.0
    """``η``; 1 takes the change as it is."""
    decay: float = 0.0
    """``d``; 0: none."""

    def __post_init__(self) -> None:
        check_positive(learning_rate=self.learning_rate)
        if not 0.0 <= self.decay < math.inf:
            raise MergeError(f"decay must be 0 or more, and finite, got {self.decay}")

    def init(self, manifest: Manifest) -> Memory:
        """Counts the steps, and no more."""
        return Memory.zeros(manifest)

    def update(self, change: GlobalState, memory: Memory) -> tuple[GlobalState, Memory]:
        """``η_t·D``."""
        rate = self.learning_rate / (1.0 + self.decay * memory.steps)
        return combine([(rate, change)]), replace(memory, steps=memory.steps + 1)
