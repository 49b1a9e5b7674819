"""Faults: random kills of both sides in real processes, and what became of every update."""

from benchmarks.faults.command import plan

__all__ = ["plan"]
