"""Groups examples of like length into seeded batches, and pads them to tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edge_client.data.tasks import Encoded

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["collate", "epoch_batches", "in_order", "training_batches"]

_BUCKET_BATCHES = 16
"""Batches in one bucket: examples are sorted by length inside a bucket only, so that order stays mostly random."""


def epoch_batches(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """One epoch: every index once, in batches of like length, in random order.

    Args:
        lengths: Tokens of each example.
        batch_size: Examples per batch; the remainder makes one smaller batch.
        rng: Decides order and company.
    """
    sizes = np.asarray(lengths)
    order = rng.permutation(len(sizes))
    batches = []
    for start in range(0, len(order), batch_size * _BUCKET_BATCHES):
        bucket = order[start : start + batch_size * _BUCKET_BATCHES]
        bucket = bucket[np.argsort(sizes[bucket], kind="stable")]
        batches += [bucket[at : at + batch_size] for at in range(0, len(bucket), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def training_batches(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Batches for a number of steps, epoch after epoch, as ``seed`` alone decides."""
    rng = np.random.default_rng(seed)
    left = steps
    while left > 0:
        for batch in epoch_batches(lengths, batch_size, rng)[:left]:
            left -= 1
            yield batch


def in_order(lengths: Sequence[int], batch_size: int) -> list[NDArray[np.int64]]:
    """Batches for evaluation: every index once, longest first, so that memory peaks at the start."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]


def collate(texts: Sequence[Encoded], pad_id: int, device: torch.device, *, with_types: bool) -> dict[str, Tensor]:
    """Pads to the longest text, on the right.

    Args:
        texts: At least one.
        pad_id: Token to pad with.
        device: Where the tensors go.
        with_types: Whether the model takes token type ids.

    Returns:
        ``input_ids``, ``attention_mask`` and, where wanted and made, ``token_type_ids``: int64, a row a text.
    """
    shape = len(texts), max(len(one.ids) for one in texts)
    ids, mask, types = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, one in enumerate(texts):
        ids[row, : len(one.ids)] = one.ids
        mask[row, : len(one.ids)] = 1
        if one.types is not None:
            types[row, : len(one.ids)] = one.types
    batch = {"input_ids": ids, "attention_mask": mask}
    if with_types and texts[0].types is not None:
        batch["token_type_ids"] = types
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
