"""A partition: the owner of every row, the recipe that made it, and the rows it was made for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.data.partitions import dealing
from benchmarks.data.partitions.dealing import UNUSED
from benchmarks.data.partitions.recipe import Recipe, Scheme
from edge_client.data.sources import Rows
from edge_client.errors import DataError

__all__ = ["Partition", "partition_rows", "rows_digest"]

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Who owns which rows; that no row has two owners follows from its shape."""

    recipe: Recipe
    """What made it."""
    digest: str
    """SHA-256 of the rows, :func:`rows_digest`."""
    owners: tuple[int, ...]
    """The client of each row, from 0; :data:`~benchmarks.data.partitions.dealing.UNUSED` if it has none."""

    @property
    def clients(self) -> int:
        """How many there are; each has rows."""
        return max(self.owners) + 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """``(clients,)`` int64: rows of each."""
        owners = np.array(self.owners)
        return np.bincount(owners[owners != UNUSED])

    def rows_of(self, client: int) -> list[int]:
        """Indices of a client's rows, ascending."""
        return [int(row) for row in np.flatnonzero(np.array(self.owners) == client)]

    def save(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        document = {"format": _FORMAT, "recipe": asdict(self.recipe), "digest": self.digest, "owners": self.owners}
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(document) + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path, rows: Rows) -> Self:
        """Reads what :meth:`save` wrote.

        Args:
            path: The file.
            rows: Those that it was made for.

        Raises:
            DataError: It cannot be read, is no partition, or is one of other rows.
        """
        try:
            partition = cls._from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise DataError(f"{path}: expected a stored partition, but reading it fails: {error!r}") from error
        made_for = f"{len(partition.owners)} rows of SHA-256 {partition.digest}"
        given = f"{len(rows)} rows of SHA-256 {rows_digest(rows)}"
        if made_for != given:
            raise DataError(f"{path}: made for {made_for}, but these are {given}; draw the partition again")
        return partition

    @classmethod
    def _from_json(cls, text: str) -> Self:
        document = json.loads(text)
        if document["format"] != _FORMAT:
            raise ValueError(f"format: expected {_FORMAT}, got {document['format']!r}")
        recipe = Recipe(**document["recipe"] | {"scheme": Scheme(document["recipe"]["scheme"])})
        partition = cls(recipe=recipe, digest=document["digest"], owners=tuple(document["owners"]))
        if not all(type(owner) is int and UNUSED <= owner < len(partition.owners) for owner in partition.owners):
            raise ValueError(f"owners: expected whole numbers from {UNUSED}, fewer than there are rows")
        if partition.clients != (recipe.clients or partition.clients) or min(partition.sizes) < recipe.rows_min:
            raise ValueError(f"owners: expected what the recipe says, got {partition.clients} clients")
        return partition


def partition_rows(rows: Rows, recipe: Recipe) -> Partition:
    """Deals rows out as a recipe says.

    Args:
        rows: With a field ``label`` where the scheme looks at labels, and the recipe's ``user_field`` where at users.
        recipe: What to do; with the same rows it gives the same partition.

    Raises:
        DataError: A row lacks the field.
        ValueError: Too few rows or users.

    Example:
        >>> rows = [{"label": index % 2} for index in range(6)]
        >>> partition_rows(rows, Recipe(scheme=Scheme.IID, clients=2, seed=0)).sizes.tolist()
        [3, 3]
    """
    owners = _owners(rows, recipe, np.random.default_rng(recipe.seed))
    return Partition(recipe=recipe, digest=rows_digest(rows), owners=tuple(int(owner) for owner in owners))


def rows_digest(rows: Rows) -> str:
    """SHA-256, hex, of all rows in order, each as JSON with sorted keys; a picture as its pixels' own digest."""
    digest = hashlib.sha256()
    for index in range(len(rows)):
        digest.update(json.dumps(dict(rows[index]), sort_keys=True, default=_pixels).encode() + b"\n")
    return digest.hexdigest()


def _pixels(picture: object) -> list[object]:
    """What stands for an array, or for what is one, such as a Pillow image.

    Raises:
        TypeError: It is no array of numbers.
    """
    pixels = np.asarray(picture)
    if pixels.dtype.kind not in "biuf":
        raise TypeError(f"expected text, a number or a picture in a row, got {type(picture).__name__}")
    return [pixels.dtype.str, pixels.shape, hashlib.sha256(pixels.tobytes()).hexdigest()]


def _owners(rows: Rows, recipe: Recipe, rng: np.random.Generator) -> NDArray[np.int64]:
    rows_min, clients, alpha = recipe.rows_min, recipe.clients or 0, recipe.alpha or 0.0
    match recipe.scheme:
        case Scheme.IID:
            return dealing.deal_iid(len(rows), clients, rows_min=rows_min, rng=rng)
        case Scheme.PRIOR_DIRICHLET:
            return dealing.deal_prior_dirichlet(
                _column(rows, "label"), clients, alpha=alpha, rows_min=rows_min, rng=rng
            )
        case Scheme.CLASS_DIRICHLET:
            return dealing.deal_class_dirichlet(
                _column(rows, "label"), clients, alpha=alpha, rows_min=rows_min, rng=rng
            )
        case Scheme.QUANTITY:
            return dealing.deal_quantity(len(rows), clients, alpha=alpha, rows_min=rows_min, rng=rng)
        case Scheme.USERS:
            return dealing.deal_users(
                _column(rows, recipe.user_field or ""), recipe.clients, rows_min=rows_min, rng=rng
            )


def _column(rows: Rows, field: str) -> list[object]:
    values = [rows[index].get(field) for index in range(len(rows))]
    if None in values:
        raise DataError(f"row {values.index(None)}: expected a field {field!r} to deal rows out by")
    return values
