"""Draws a data set's parts: rows to train on, to choose settings by, and for the final score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.apportionment import apportion
from edge_client.errors import DataError

__all__ = ["Parts", "draw_parts", "stratified_sample"]

R = TypeVar("R", bound=Mapping[str, Any])


@dataclass(frozen=True, kw_only=True)
class Parts(Generic[R]):
    """Three parts that share no row."""

    train: list[R]
    """For the devices."""
    selection: list[R]
    """To choose settings by."""
    test: list[R]
    """For the final score."""


def draw_parts(
    rows: Sequence[R],
    tested: Sequence[R],
    *,
    train: int | None,
    selection: int,
    test: int | None,
    seed: int,
    held_out_seed: int,
) -> Parts[R]:
    """Draws as many rows as wanted, each part with the shares of the field ``label`` in what it is drawn from.

    Args:
        rows: The training split.
        tested: The split of the final score.
        train: Most training rows; None: all that are not taken for selection.
        selection: Rows taken from the training split to choose settings by.
        test: Most rows for the final score; None: all.
        seed: Draws the training rows.
        held_out_seed: Draws the selection and test rows, which runs of several seeds share.

    Raises:
        DataError: Too few rows are left to train on.
    """
    if not 0 <= selection < len(rows):
        raise DataError(f"selection: expected 0 to {len(rows) - 1} of {len(rows)} training rows, got {selection}")
    held_out = np.random.default_rng(held_out_seed)
    chosen = stratified_sample(_labels(rows), selection, held_out)
    left = [rows[index] for index in np.setdiff1d(np.arange(len(rows)), chosen)]
    return Parts(
        train=_sampled(left, train, np.random.default_rng(seed)),
        selection=[rows[index] for index in chosen],
        test=_sampled(tested, test, held_out),
    )


def stratified_sample(labels: Sequence[object], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws rows, of each label as near to its share as whole rows allow.

    Args:
        labels: One per row.
        count: How many, at most as many as there are.
        rng: Draws them.

    Returns:
        ``(count,)`` int64: indices, ascending.

    Raises:
        ValueError: More rows are wanted than there are.

    Example:
        >>> drawn = stratified_sample(["a"] * 80 + ["b"] * 20, 10, np.random.default_rng(0))
        >>> len(drawn), int((drawn >= 80).sum())
        (10, 2)
    """
    names = sorted(set(labels), key=str)
    of_label = [np.flatnonzero([label == name for label in labels]) for name in names]
    counts = apportion(count, np.array([len(rows) for rows in of_label], float))
    drawn = [rng.choice(rows, wanted, replace=False) for rows, wanted in zip(of_label, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def _sampled(rows: Sequence[R], count: int | None, rng: np.random.Generator) -> list[R]:
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[index] for index in stratified_sample(_labels(rows), count, rng)]


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [row["label"] for row in rows]
