"""Tuning methods: each makes a hand-out trainable on a base model, and what became of it an update."""

from edge_client.methods.interface import Method
from edge_client.methods.registry import build_method

__all__ = ["Method", "build_method"]
