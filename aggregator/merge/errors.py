"""What the merge raises: one class, because the caller can do one thing, keep the old state and say why."""

from __future__ import annotations

__all__ = ["MergeError"]


class MergeError(Exception):
    """The input cannot be merged; the message names the client, module or tensor. No state has changed."""
