"""Opens what a user gives as ``data=``: an object that holds rows, a file, a folder, or a hub data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from edge_client.data.arrays import read_npz
from edge_client.data.image_folder import ImageFolder
from edge_client.errors import DataError

__all__ = ["Rows", "has_split", "open_rows"]

Row = Mapping[str, Any]

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".npz")


class Rows(Protocol):
    """Anything with a length whose items are maps from column to value."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


def open_rows(data: object, split: str = "train") -> Rows:
    """Opens data.

    Args:
        data: A ``datasets.Dataset``, a list of dicts, a torch ``Dataset`` of dicts; a map from split to one of these
            (such as a ``DatasetDict``); a ``.jsonl``, ``.csv``, ``.tsv`` or ``.npz`` file (an array a column); a folder
            with ``train.jsonl`` and the like, or with pictures ``train/<label>/<file>``; or a hub data set
            ``"owner/name"``, ``"owner/name:config"`` where ``datasets`` is installed.
        split: ``train``, ``validation`` or ``test``; decides the file in a folder, the member of a map.

    Raises:
        DataError: It cannot be opened, holds no rows, or a line is broken; names file and line.
    """
    rows = _open(data, split)
    if len(rows) == 0:
        raise DataError(f"the {split} data holds no rows: expected at least one")
    return rows


def has_split(data: object, split: str) -> bool:
    """Whether data is a folder that holds this split."""
    return isinstance(data, (str, Path)) and _of_split(Path(data), split) is not None


def _open(data: object, split: str) -> Rows:
    if isinstance(data, (str, Path)):
        path = Path(data)
        if path.is_dir():
            return _read_split(path, split)
        return _read_file(path) if path.is_file() or path.suffix in _SUFFIXES else _from_hub(str(data), split)
    if isinstance(data, Mapping):
        if split not in data:
            raise DataError(f"the data has no split {split!r}; it has {', '.join(map(str, data))}")
        return _open(data[split], split)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return cast("Rows", data)
    raise DataError(
        f"data: expected a data set, a list of dicts, or a path to JSONL, CSV or a folder, got {type(data).__name__}"
    )


def _of_split(folder: Path, split: str) -> Path | None:
    """The file, or the folder of pictures, that holds a split."""
    files = (path for suffix in _SUFFIXES if (path := folder / f"{split}{suffix}").is_file())
    return next(files, folder / split if (folder / split).is_dir() else None)


def _read_split(folder: Path, split: str) -> Rows:
    found = _of_split(folder, split)
    if found is None:
        raise DataError(
            f"{folder}: expected a file {split}.jsonl (or .csv, .tsv, .npz), or pictures {split}/<label>/<file>"
        )
    return ImageFolder(found) if found.is_dir() else _read_file(found)


def _read_file(path: Path) -> Rows:
    if path.suffix == ".npz":
        return read_npz(path)
    readers = {".jsonl": _jsonl, ".json": _jsonl, ".csv": _csv, ".tsv": _csv}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected one of {', '.join(_SUFFIXES)}")
    try:
        return list(readers[path.suffix](path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
            yield row


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} fields")
                yield row
        except csv.Error as error:  # raised before the line is counted
            raise DataError(f"{path}, line {reader.line_num + 1}: {error}") from error


def _from_hub(name: str, split: str) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{name!r} is no file or folder; to fetch it from the hub, install `datasets`") from error
    path, _, config = name.partition(":")
    try:
        return cast("Rows", datasets.load_dataset(path, config or None, split=split))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name!r} is no file or folder, and no data set that the hub or its cache has: {error}"
        ) from error
