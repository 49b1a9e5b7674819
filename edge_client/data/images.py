"""Turns rows of images into pixels at the model's size and labels, and names the row that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.data.located_row import LocatedRow
from edge_client.data.sources import Rows
from edge_client.data.tasks import Example, Image, label_index
from edge_client.errors import BaseModelError, DataError
from protocol.manifest import Task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import BaseImageProcessor

__all__ = ["encode_images", "pixel_values"]


def encode_images(rows: Rows, task: Task, processor: BaseImageProcessor) -> list[Example]:
    """Brings all images to the model's size.

    Args:
        rows: What :func:`~edge_client.data.sources.open_rows` gave; column ``image`` holds NumPy uint8
            ``[height, width, 3]`` or a PIL image of any mode, column ``label`` a name or index.
        task: The run's task.
        processor: The base model's.

    Returns:
        One example a row, with uint8 pixels: a quarter of what :func:`pixel_values` makes of a batch.

    Raises:
        DataError: A row lacks a column, holds something else than an image, or its label is not in the manifest; names
            the row, counted from 0.
        BaseModelError: The processor leaves images in sizes of their own, which no batch can hold.
    """
    examples, shapes = [], set()
    for row in LocatedRow.all_of(rows):
        pixels = _resized(_rgb(row), processor)
        shapes.add(pixels.shape)
        label = label_index(row.row.get("label"), task.labels, f"row {row.index}")
        examples.append(Example((Image(pixels),), float(label)))
    if len(shapes) > 1:
        raise BaseModelError(
            f"the base's image processor leaves images in {len(shapes)} sizes, such as "
            f"{' and '.join(map(str, sorted(shapes)[:2]))}: expected a 'size' with height and width, or a centre crop"
        )
    return examples


def pixel_values(images: Sequence[Image], processor: BaseImageProcessor) -> NDArray[np.float32]:
    """What the model takes, ``[batch, channels, height, width]``: rescaled and normalised as the processor says."""
    found: NDArray[np.float32] = processor(
        [image.pixels for image in images],
        do_resize=False,
        do_center_crop=False,
        input_data_format="channels_first",
        return_tensors="np",
    )["pixel_values"]
    return found


def _rgb(row: LocatedRow) -> NDArray[np.uint8]:
    """A row's image, ``[height, width, 3]``."""
    image = row.value("image")
    if callable(getattr(image, "convert", None)):  # a PIL image knows its mode, and may not be decoded yet
        return _converted(image, row.index)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"row {row.index}: column 'image': expected a NumPy array or a PIL image, got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(
            f"row {row.index}: column 'image': expected uint8 [height, width, 3], got {image.dtype} "
            f"{list(image.shape)}; a PIL image is converted, an array is not"
        )
    return image


def _converted(image: Any, index: int) -> NDArray[np.uint8]:
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG files
        raise DataError(f"row {index}: column 'image': cannot be decoded ({error})") from error


def _resized(image: NDArray[np.uint8], processor: BaseImageProcessor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = processor(
        [image], do_rescale=False, do_normalize=False, input_data_format="channels_last", return_tensors="np"
    )["pixel_values"][0]
    return found
