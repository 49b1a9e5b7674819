"""Gaussian noise that a restart draws again, and nobody without the secret can."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from aggregator.merge.errors import MergeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["GaussianNoise"]

_SEED_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Independent normals of one deviation for every value of a model.

    Raises:
        MergeError: The deviation is not positive, or the seed too short to be a secret.
    """

    deviation: float
    """Standard deviation, in the weights' units."""
    seed: bytes = field(repr=False)
    """32 bytes that nobody but the aggregator knows: with them the noise can be taken off again."""

    def __post_init__(self) -> None:
        if not 0 < self.deviation < np.inf:
            raise MergeError(f"noise needs a deviation above 0, got {self.deviation}")
        if len(self.seed) < _SEED_BYTES:
            raise MergeError(f"noise needs a seed of {_SEED_BYTES} bytes, got {len(self.seed)}")

    @classmethod
    def of_cohort(cls, deviation: float, secret: bytes, round_number: int, updates: Iterable[str]) -> Self:
        """The noise of one merge.

        Another round gets other noise, though the same updates may come again: were the noise the same, two steps alike
        would show whoever sent the same twice that nobody else was there. Another cohort gets other noise, too: where a
        home was restored from a backup and a round comes out differently, the difference of the two versions still has
        noise in it.

        Args:
            deviation: Standard deviation.
            secret: The run's secret.
            round_number: From 1.
            updates: Digests of the updates merged, in canonical order.
        """
        merged = (text.encode() for text in (str(round_number), *updates))
        return cls(deviation=deviation, seed=hashlib.sha256(b"\0".join([b"cohort", secret, *merged])).digest())

    def values(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The noise of one trainable, the same at each call."""
        digest = hashlib.sha256(b"\0".join([b"trainable", self.seed, name.encode()])).digest()
        stream = np.random.default_rng(int.from_bytes(digest, "little"))
        return stream.normal(0.0, self.deviation, shape)
