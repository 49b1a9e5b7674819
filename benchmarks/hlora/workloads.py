"""The tasks, and how a device trains on each.

Every arm has the same settings. The small Llamas' were chosen on rows that no arm is scored on, with an arm whose ranks
are not mixed ("delta, all at rank 16" on AG News, 40 % a round, seed 0). Devices that have one label to 73 % (α = 1) or
99 % (α = 0.1) each pull the head their own way, so many short rounds teach more than few long ones: at 8 examples a
step, 20 rounds of 4 steps leave the accuracy at .25 to .36, and 80 rounds of 1 or 2 bring it to .41 to .475. In 40
rounds of 2 steps, on all linear layers, 2e-3, 4e-3 and 8e-3 come to a loss of 1.24 to 1.27 at α = 1, and 2e-3 and 4e-3
to 1.31 and 1.33 at 0.1. A step that shrinks as 1/(1 + 0.05 t) or 1/(1 + 0.1 t) ends above the constant one (1.32
to 1.30 at α = 1, 1.35 to 1.33 at 0.1): the runs end before anything drifts. Tuning only the two layers of a block that
write to its output costs .07 of loss (1.23 to 1.30), and takes two thirds of the time.

The encoder's, likewise at α = 1: on QQP 20 rounds of 4 steps at 1e-3 end at an accuracy of .655, 40 rounds of 2 steps
at 2e-3 at .78.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["WORKLOADS", "Workload"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One task on one kind of base model."""

    hub: str
    """Hub id of the data, for those who name no folder."""
    metric: str
    """What the task is scored by, a fraction."""
    max_length: int
    """Tokens of a text, or of a pair."""
    batch_size: int
    """Examples per local step."""
    learning_rate: float
    """Peak of each round."""
    target_modules: tuple[str, ...] | None = None
    """Linear layers that have adapters, by the end of their names; None: all."""


def _llama(*, hub: str) -> Workload:
    """A text on a small Llama."""
    return Workload(
        hub=hub,
        metric="accuracy",
        max_length=32,
        batch_size=8,
        learning_rate=4e-3,
        target_modules=("o_proj", "down_proj"),
    )


def _encoder(*, hub: str, metric: str, max_length: int) -> Workload:
    """A pair of sentences on a pretrained sentence encoder."""
    return Workload(hub=hub, metric=metric, max_length=max_length, batch_size=8, learning_rate=2e-3)


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        "agnews": _llama(hub="fancyzhx/ag_news"),
        "sst2": _llama(hub="stanfordnlp/sst2"),
        "mrpc": _encoder(hub="nyu-mll/glue:mrpc", metric="f1", max_length=64),
        "rte": _encoder(hub="nyu-mll/glue:rte", metric="accuracy", max_length=64),
        "qqp": _encoder(hub="nyu-mll/glue:qqp", metric="f1", max_length=48),
    }
)
"""By the name of the data's folder."""
