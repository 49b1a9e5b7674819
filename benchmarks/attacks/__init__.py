"""Attacks: how much of a device's text can be read from what it sends, by tuning method."""

from benchmarks.attacks.command import plan

__all__ = ["plan"]
