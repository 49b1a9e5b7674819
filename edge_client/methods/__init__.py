"""Tuning methods: each says which tensors a run trains, and makes a hand-out of them trainable on a base model."""

from edge_client.methods.interface import Method, Subject, Trainables, Tuner
from edge_client.methods.registry import METHODS, method_of, read_method

__all__ = ["METHODS", "Method", "Subject", "Trainables", "Tuner", "method_of", "read_method"]
