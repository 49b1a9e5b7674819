"""Deals labelled examples out to devices so that each sees its own mixture of labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["deal_by_label"]


def deal_by_label(
    labels: Sequence[object], devices: int, *, concentration: float, rng: np.random.Generator
) -> list[list[int]]:
    """Splits each label's examples by shares drawn from a symmetric Dirichlet distribution.

    Args:
        labels: One per example.
        devices: How many parts.
        concentration: Of the Dirichlet: 0.1 gives devices with hardly more than one label, 100 nearly equal mixtures.
        rng: Draws shares and order.

    Returns:
        Indices by device; every index once, no device empty while there are as many examples as devices.

    Raises:
        ValueError: Fewer examples than devices.

    Reference: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019, arXiv:1909.06335, section 3.1; here each label, not each device, draws its shares, so that
    all examples are used.
    """
    if len(labels) < devices:
        raise ValueError(f"expected at least {devices} examples, one a device, got {len(labels)}")
    parts: list[list[int]] = [[] for _ in range(devices)]
    for label in sorted(set(labels), key=str):
        indices = rng.permutation([index for index, other in enumerate(labels) if other == label])
        shares = rng.dirichlet(np.full(devices, concentration))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(indices)).astype(int)
        for part, dealt in zip(parts, np.split(indices, cuts), strict=True):
            part.extend(int(index) for index in dealt)
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return [[part[at] for at in rng.permutation(len(part))] for part in parts]
