"""Float64 tensors in a safetensors file, read in place: a state of many gigabytes is mapped, not loaded."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from aggregator.merge.errors import MergeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["view_tensors"]


def view_tensors(data: bytes | memoryview) -> dict[str, NDArray[np.float64]]:
    """The tensors of a file that this side wrote, as read-only views; the safetensors library would copy each.

    Args:
        data: The whole file, in memory or mapped.

    Raises:
        MergeError: It is not such a file, is cut short, or holds something else than float64.
    """
    view = memoryview(data)
    try:
        start = 8 + int.from_bytes(view[:8], "little")
        table = json.loads(bytes(view[8:start]))
        body = view[start:]
        if len(body) != max((entry["data_offsets"][1] for entry in table.values()), default=0):
            raise ValueError(f"{len(view)} bytes are not as many as its header tells")
        return {name: _array(body, entry) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise MergeError(f"the stored state cannot be read: {error}") from error


def _array(body: memoryview, entry: dict[str, Any]) -> NDArray[np.float64]:
    (start, end), shape = entry["data_offsets"], tuple(entry["shape"])
    if entry["dtype"] != "F64" or end - start != 8 * math.prod(shape):
        raise ValueError(f"{entry} is not a float64 tensor")
    return np.frombuffer(body[start:end], "<f8").reshape(shape)
