"""What is compared: each arm is a way to merge, or a federation that needs no mixed ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aggregator.merge.strategies import StrategyName
from protocol.codecs import Codec

__all__ = ["ARMS", "BASELINE", "RANKS", "Arm"]

RANKS = (2, 4, 8, 16)
"""LoRA ranks that the devices have in turn."""
BASELINE = "delta"
"""The arm that all others are compared with: the product's default."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to spend the same local steps."""

    strategy: StrategyName = StrategyName.DELTA
    """What the aggregator merges by."""
    residual: bool = False
    """Whether devices take the part of the global update beyond their rank as a frozen adapter."""
    learning_rate_decay: float = 0.0
    """The run's decay of the devices' learning rate."""
    retention: float = 1.0
    """The run's retention of what a cohort did not see."""
    rank: int | None = None
    """One rank for all devices; None: those of :data:`RANKS`."""
    pooled: bool = False
    """All data on one device, which takes a cohort's batches as one: as many steps a round as a device, and as many
    examples as its cohort."""
    codec: Codec = Codec.FP32
    """Number format of updates. Hand-outs are fp32 in every arm."""

    def ranks(self, clients: int) -> list[int]:
        """The rank of each device.

        Example:
            >>> Arm().ranks(5), Arm(rank=4).ranks(2)
            ([2, 4, 8, 16, 2], [4, 4])
        """
        return [self.rank or RANKS[client % len(RANKS)] for client in range(clients)]


ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "delta": Arm(),
        "delta, residual": Arm(residual=True),
        "delta, decaying step": Arm(learning_rate_decay=0.1),
        "delta, retention .7": Arm(retention=0.7),
        "delta-rotate, residual": Arm(strategy=StrategyName.DELTA_ROTATE, residual=True),
        "flora": Arm(strategy=StrategyName.FLORA, residual=True),
        "delta, int8": Arm(codec=Codec.INT8),
        "hlora": Arm(strategy=StrategyName.HLORA),
        "raflora": Arm(strategy=StrategyName.RAFLORA),
        "zero-padding": Arm(strategy=StrategyName.ZERO_PADDING),
        "hetlora": Arm(strategy=StrategyName.HETLORA),
        "ffa": Arm(strategy=StrategyName.FFA),
        "fedit, rank 16": Arm(strategy=StrategyName.FEDIT, rank=max(RANKS)),
        "delta, all at rank 16": Arm(rank=max(RANKS)),
        "delta, all at rank 2": Arm(rank=min(RANKS)),
        "centralised, rank 16": Arm(rank=max(RANKS), pooled=True),
    }
)
"""By name, as tables show them. ``delta-fresh`` with the residual is not among them: where ``B`` starts at zero it is
``flora`` to the last digit."""
