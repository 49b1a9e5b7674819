"""What an app can see of its client: values, safe to pass between threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_client.session.activities import Phase

__all__ = ["RoundResult", "RunSummary", "Status"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a client is."""

    state: Phase = Phase.OFFLINE
    """What it is doing."""
    run: str
    """Run id."""
    device: str | None = None
    """The device's name in the operator's ``status``; None before the first start."""
    round: int | None = None
    """Round worked on last."""
    step: int = 0
    """Optimizer steps done in this round."""
    steps: int = 0
    """Optimizer steps of this round."""
    loss: float | None = None
    """Training loss of the last step."""
    accepted: int = 0
    """Results of this process that the aggregator holds durably."""
    bytes_sent: int = 0
    """Bytes of the frames sent since this process started."""
    bytes_received: int = 0
    """Bytes of the frames received."""
    epsilon: float | None = None
    """``ε`` that all private training of this device in this run has cost; None: there was none."""
    delta: float | None = None
    """``δ`` that it is at."""
    last_error: str | None = None
    """The last thing that went wrong, mended or not."""


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """How the aggregator received the result of one round."""

    round: int
    """Round number."""
    accepted: bool
    """Whether it is durable there."""
    reason: str
    """Why not; empty if it is."""
    num_examples: int
    """Examples it rests on."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Local metrics."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What came of a run."""

    run: str
    """Run id."""
    finished: bool
    """Whether the run is over and the final adapter in use; False after :meth:`EdgeClient.stop`."""
    version: int | None
    """Version of the final state."""
    rank: int | None
    """Rank of the final adapter on this device."""
    accepted: int
    """Results of this process that the aggregator holds."""
    bytes_sent: int
    """Bytes of the frames sent."""
    bytes_received: int
    """Bytes of the frames received."""
    epsilon: float | None = None
    """``ε`` of this device, as in :class:`Status`."""
    delta: float | None = None
    """``δ`` that it is at."""
