"""Every bound that protocol version 2 puts on what a peer may send, in one place.

The bounds are checked before anything is allocated for the input they bound.
"""

from __future__ import annotations

__all__ = [
    "ASSIGNMENT_MAX_BYTES",
    "CHUNK_MAX_BYTES",
    "CHUNK_MIN_BYTES",
    "DIMENSION_MAX",
    "HEADER_MAX_BYTES",
    "LABELS_MAX",
    "MANIFEST_MAX_BYTES",
    "METHOD_OPTIONS_MAX",
    "METRICS_MAX",
    "NAME_MAX_CHARS",
    "NUM_EXAMPLES_MAX",
    "OBJECT_MAX_BYTES",
    "PROTOCOL_VERSION",
    "RANK_MAX",
    "REASON_MAX_CHARS",
    "TENSORS_MAX",
    "WAIT_MAX_MS",
    "WINDOW_CHUNKS",
]

PROTOCOL_VERSION = 2

HEADER_MAX_BYTES = 4096
"""One msgpack header frame."""
CHUNK_MAX_BYTES = 1 << 20
"""One payload frame. 1 MiB is libzmq's best point under CURVE: larger frames are slower and cost memory."""
CHUNK_MIN_BYTES = 32 << 10
"""A client on a slow link goes no lower than this."""
WINDOW_CHUNKS = 4
"""Credit the receiver keeps open, in chunks of :data:`CHUNK_MAX_BYTES`."""
ASSIGNMENT_MAX_BYTES = 256 << 10
"""One assignment, as JSON."""
MANIFEST_MAX_BYTES = 8 << 20
"""One manifest, as JSON: about 50,000 trainables."""
OBJECT_MAX_BYTES = 16 << 30
"""One transferred object (a hand-out or an update)."""
TENSORS_MAX = 65_536
"""Trainables in one manifest."""
DIMENSION_MAX = 1 << 31
"""Entries along one axis, and in one tensor ``2**40`` at most (checked as a product)."""
RANK_MAX = 4096
"""LoRA rank of one module."""
LABELS_MAX = 10_000
"""Labels of one classification task."""
NAME_MAX_CHARS = 512
"""Module, tensor, label and metric names."""
REASON_MAX_CHARS = 512
"""Human-readable reasons in ``NACK``, ``WAIT``, ``DECLINE`` and ``BYE``."""
METHOD_OPTIONS_MAX = 32
"""Settings of one tuning method, and texts in one of them."""
METRICS_MAX = 160
"""Metrics in one report: a probe's have a number for each layer of a large model, and still fit its header."""
NUM_EXAMPLES_MAX = 1 << 40
"""``num_examples`` on the wire; a run sets its own, lower bound."""
NOISE_MULTIPLIER_MIN, NOISE_MULTIPLIER_MAX = 0.01, 1e6
"""``σ`` of differential privacy, where there is noise: a step at the least costs an ``ε`` of 5,000, and far below it
the accountants' formulas overflow and say 0."""
WAIT_MAX_MS = 24 * 3600 * 1000
"""Longest time an aggregator may send a client away for."""
