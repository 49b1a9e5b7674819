"""The quick start: a whole federation on one machine, compared with everything it should be compared with."""

from benchmarks.quickstart.command import plan

__all__ = ["plan"]
