"""Data sets that the benchmarks federate."""
