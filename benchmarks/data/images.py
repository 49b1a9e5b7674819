"""Image data as benchmarks use it: some classes of a set, with rows to train on, to choose settings by, and to score.

CIFAR-10 in the form of one ``.npz`` file with the arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` and
``classes``, or any labelled set of images on the hub.

Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, chapter 3 (CIFAR-10).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data.parts import draw_parts
from edge_client.data.arrays import ArrayRows
from edge_client.data.sources import Rows, open_rows
from edge_client.data.tasks import whole_number
from edge_client.errors import DataError

__all__ = ["CIFAR10", "ImageData", "load_images"]

Row = Mapping[str, Any]

CIFAR10 = "uoft-cs/cifar10"
"""Hub id of the data, for those who name no file."""

_ARRAYS = ("x_train", "y_train", "x_test", "y_test", "classes")
_COLUMNS = ("image", "img")


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Some classes' rows, each ``{"image": uint8 [height, width, 3] or PIL image, "label": index}``.

    These are the fields that :mod:`edge_client.data.images` takes.
    """

    labels: tuple[str, ...]
    """Names in the order of their index."""
    train: Sequence[Row]
    """For the devices."""
    selection: Sequence[Row]
    """To choose settings by; none of them is in ``train``."""
    test: Sequence[Row]
    """For the final score."""


def load_images(
    data: str | Path,
    *,
    classes: Sequence[str] | None,
    train: int | None,
    selection: int,
    test: int | None,
    seed: int,
    held_out_seed: int = 0,
) -> ImageData:
    """Reads the images of some classes, and draws as many as wanted, each part with the label shares of its split.

    Args:
        data: An ``.npz`` file, a folder with one such file, or a hub data set with splits ``train`` and ``test``.
        classes: Names of the classes, which get their labels in this order; None: all.
        train: Most training rows; None: all that are not taken for selection.
        selection: Rows taken from the training split to choose settings by.
        test: Most rows for the final score; None: all.
        seed: Draws the training rows.
        held_out_seed: Draws the selection and test rows, which runs of several seeds share.

    Raises:
        DataError: The data cannot be read, a class is not in it, or too few rows are left to train on.
    """
    names, splits = _splits(data)
    wanted = tuple(names if classes is None else classes)
    unknown = [name for name in wanted if name not in names]
    if unknown or len(set(wanted)) != len(wanted) or len(wanted) < 2:
        raise DataError(f"classes: expected two or more of {', '.join(names)}, each once, got {', '.join(wanted)}")
    place = {names.index(name): place for place, name in enumerate(wanted)}
    train_rows, test_rows = (_of_classes(splits[split], place, split) for split in ("train", "test"))
    parts = draw_parts(
        train_rows, test_rows, train=train, selection=selection, test=test, seed=seed, held_out_seed=held_out_seed
    )
    return ImageData(labels=wanted, train=parts.train, selection=parts.selection, test=parts.test)


def _splits(data: str | Path) -> tuple[list[str], Mapping[str, Rows]]:
    """Class names and the two splits."""
    path = Path(data)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if len(files) != 1:
            raise DataError(f"{path}: expected one .npz file of images, found {len(files)}")
        return _from_file(files[0])
    if path.is_file() or path.suffix == ".npz":
        return _from_file(path)
    splits = {split: open_rows(str(data), split) for split in ("train", "test")}
    names = getattr((getattr(splits["train"], "features", None) or {}).get("label"), "names", None)
    if not names:
        raise DataError(f"{data}: expected a feature 'label' that names its classes")
    return list(names), splits


def _from_file(path: Path) -> tuple[list[str], Mapping[str, Rows]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected an .npz file with the arrays {', '.join(_ARRAYS)} ({error})") from error
    splits = {
        split: ArrayRows({"image": arrays[f"x_{split}"], "label": arrays[f"y_{split}"]}) for split in ("train", "test")
    }
    return [str(name) for name in arrays["classes"]], splits


def _of_classes(rows: Rows, place: Mapping[int, int], split: str) -> list[Row]:
    """The rows whose label is a key of ``place``, with its value as their label."""
    found: list[Row] = []
    for index in range(len(rows)):
        row = rows[index]
        label = whole_number(row.get("label"))
        if label is None:
            raise DataError(f"{split} row {index}: label {row.get('label')!r}: expected a class's index")
        if label in place:
            found.append({"image": row[_image_column(row, split)], "label": place[label]})
    return found


def _image_column(row: Row, split: str) -> str:
    column = next((column for column in _COLUMNS if column in row), None)
    if column is None:
        raise DataError(f"{split} rows: expected the image in one of {', '.join(_COLUMNS)}, there are {', '.join(row)}")
    return column
