"""Benchmarks: one file per question, run as `python -m benchmarks NAME`."""

from benchmarks import _siblings as _siblings  # first: it explains a foreign package of one of our names
