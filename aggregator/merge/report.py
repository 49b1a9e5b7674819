"""What a merge has to say for itself: plain records, one JSON line per trainable and round."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

__all__ = ["DenseReport", "MergeReport", "ModuleReport"]


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """One low-rank module after a merge. Norms are Frobenius norms."""

    name: str
    """Module."""
    rank: int
    """Numerical rank of its offset."""
    effective_rank: float
    """``exp(H(σ²/Σσ²))``: how many directions share the energy."""
    norm: float
    """Norm of the offset."""
    update_norm: float
    """Norm of what this merge added."""
    merge_error: float
    """Norm of all that was dropped as numerically zero through all rounds, over ``norm``: the certificate. Plain
    float64 rounding, of the same order, comes on top."""
    handout_error: Mapping[int, float]
    """Rank → ``‖M − T_r‖ / ‖M‖``."""


@dataclass(frozen=True, kw_only=True)
class DenseReport:
    """One dense tensor after a merge."""

    name: str
    """Tensor."""
    norm: float
    """Norm of its offset."""
    update_norm: float
    """Norm of what this merge added."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """One merge."""

    clients: int
    """Updates merged."""
    total_weight: float
    """Sum of their weights: of ``num_examples``, in a round."""
    modules: tuple[ModuleReport, ...]
    """Low-rank modules, in manifest order."""
    dense: tuple[DenseReport, ...]
    """Dense tensors, in manifest order."""

    def lines(self, round: int) -> Iterator[str]:
        """One JSON object per trainable, without newlines.

        Args:
            round: Round number to put into each.
        """
        shared = {"round": round, "clients": self.clients}
        for module in self.modules:
            yield json.dumps({**shared, "kind": "low-rank", **asdict(module)})
        for tensor in self.dense:
            yield json.dumps({**shared, "kind": "dense", **asdict(tensor)})
