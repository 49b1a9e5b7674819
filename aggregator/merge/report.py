"""What a merge has to say for itself: plain records, one JSON line per trainable and round."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from aggregator.merge.bias import Bias

__all__ = ["DenseReport", "MergeReport", "ModuleReport"]


@dataclass(frozen=True, kw_only=True)
class ModuleReport:
    """One low-rank module after a merge. Norms are Frobenius norms."""

    name: str
    """Module."""
    rank: int
    """Rank of its offset: exact where all singular values are known, else an upper bound."""
    effective_rank: float
    """``exp(H(σ²/Σσ²))``: how many directions share the energy. Where the tail's values are not known they count as
    equal, which makes it an upper bound."""
    norm: float
    """Norm of the offset."""
    update_norm: float
    """Norm of what this merge added."""
    merge_error: float
    """The certificate: norm of all that was ever dropped, as numerically zero or by a cap, over ``norm``; at least the
    true error. Plain float64 rounding comes on top."""
    merge_bias: Bias | None = None
    """The merged offset against its definition, where that was measured: error, gain and direction."""
    handout_error: Mapping[int, float]
    """Rank → ``‖M − T_r‖ / ‖M‖``."""
    retention: Mapping[int, float] = field(default_factory=dict)
    """Rank → ``P_r``, the weight of the devices that trained this module at that rank or a higher one."""
    handout_bias: Bias | None = None
    """``Σ p_i T_i``, what the cohort would hold on average of the new offset, against all of it; None: no cohort."""


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
