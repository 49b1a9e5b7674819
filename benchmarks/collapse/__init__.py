"""Collapse: what is left of a model after rounds in which nobody changed anything, under every merge strategy."""

from benchmarks.collapse.command import plan

__all__ = ["plan"]
