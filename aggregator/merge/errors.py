"""What the merge raises: one class, because the caller can do one thing, keep the old state and say why."""

from __future__ import annotations

from aggregator.errors import AggregatorError

__all__ = ["MergeError"]


class MergeError(AggregatorError):
    """The input cannot be merged; the message names the client, module or tensor. No state has changed."""
