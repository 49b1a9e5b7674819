"""The seam between the client's session and whatever trains: torch on a device, NumPy in tests and fault runs.

Everything here is torch-free. A trainer receives the hand-out as NumPy arrays, changes nothing it was given, and
returns the *change*: ``(s·dB, dA)`` per low-rank module and plain differences for dense tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from protocol.assignment import Assignment
from protocol.manifest import Manifest, Quantization
from protocol.payload import AdapterTensors

__all__ = ["Cancelled", "LocalResult", "Progress", "Trainer", "TrainerInfo"]


class Cancelled(Exception):  # noqa: N818 - an outcome, as asyncio.CancelledError is
    """Raised by a trainer between two steps after it was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class TrainerInfo:
    """What a device tells the aggregator about itself when it asks for work."""

    fingerprint: str
    """Fingerprint of the base model's unquantised tensors, 64 hex digits."""
    quantization: Quantization
    """How this device holds the base."""
    rank: int | None
    """LoRA rank this device wants to train at; None: the run's default."""
    residual: bool
    """Whether it takes the frozen residual behind its own slots."""
    num_examples: int
    """Local training examples."""
    private: bool = False
    """Whether it trains by DP-SGD where ``assignment.local.private`` says so; one that does not is asked for none."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where local training is; passed to the progress callback after every optimizer step."""

    step: int
    """Optimizer steps done, from 1."""
    steps: int
    """Optimizer steps in all."""
    loss: float
    """Mean training loss of this step."""
    round: int
    """Round number."""


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What came of one assignment."""

    update: AdapterTensors | None
    """The change, in the assignment's update layout, for ``train``; None for ``evaluate`` and ``probe``."""
    num_examples: int
    """Examples it rests on: the aggregation weight."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Finite numbers by name, such as ``loss``; at most :data:`protocol.limits.METRICS_MAX`."""


class Trainer(Protocol):
    """Trains and evaluates on this device. Called from one thread, never concurrently."""

    def info(self, manifest: Manifest) -> TrainerInfo:
        """Gets ready for a run and says what this device is.

        Loads the base model on first use and keeps it. Called once per connection.

        Raises:
            edge_client.errors.EdgeClientError: This device cannot take part (wrong base, unknown label, bad data).
        """

    def run(
        self,
        assignment: Assignment,
        handout: AdapterTensors,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> LocalResult:
        """Carries out one assignment.

        Args:
            assignment: What to do.
            handout: ``assignment.handout.slots`` slots: the first ``assignment.rank`` to train, the rest frozen.
            cancelled: Polled between optimizer steps.
            progress: Called after every optimizer step.

        Raises:
            Cancelled: ``cancelled()`` came true.
        """

    def install(self, adapter: AdapterTensors, rank: int) -> None:
        """Puts an adapter into the resident model for use, at the end of a run."""
