"""Merge: seconds and memory of the exact merge beside the ways that others published."""

from benchmarks.merge.command import plan

__all__ = ["plan"]
