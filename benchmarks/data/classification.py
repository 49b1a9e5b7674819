"""Classification data as benchmarks use it: rows to train on, rows to choose settings by, rows for the final score.

The settings' rows are a part of the training split, so that whatever is chosen on them has not seen the final ones.
(SST-2's training rows are phrases of common sentences: there, settings are chosen on rows that resemble the rest.)
The final rows are the test split, or, where that hides its labels as most of GLUE's do, the validation split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data.parts import draw_parts
from edge_client.data.sources import Rows, open_rows
from edge_client.data.tasks import label_index, whole_number
from edge_client.errors import DataError

__all__ = ["ClassificationData", "load_classification"]

Row = Mapping[str, str | int]

HIDDEN = -1
"""Label of a row whose label is kept secret."""

_PAIRS = (
    ("sentence1", "sentence2"),  # MRPC, RTE, STS-B; QQP in the layout of a folder
    ("question1", "question2"),  # QQP on the hub
    ("premise", "hypothesis"),  # MNLI
    ("question", "sentence"),  # QNLI
)
_SINGLES = (("sentence",), ("text",))  # SST-2, CoLA; AG News on the hub
_LABELS_MAX = 1000


@dataclass(frozen=True, kw_only=True)
class ClassificationData:
    """One task's rows, each ``{"sentence": text, "label": index}`` or ``{"sentence1": …, "sentence2": …, "label": …}``.

    These are the fields that :mod:`edge_client.data.tasks` encodes without a template.
    """

    labels: tuple[str, ...]
    """Names in the order of their index."""
    text_fields: tuple[str, ...]
    """``("sentence",)`` or ``("sentence1", "sentence2")``."""
    train: Sequence[Row]
    """For the devices."""
    selection: Sequence[Row]
    """To choose settings by; none of them is in ``train``."""
    test: Sequence[Row]
    """For the final score."""
    test_split: str
    """Which split they come from: ``test``, or ``validation`` where the test labels are hidden or there is none."""


def load_classification(
    data: object, *, train: int | None, selection: int, test: int | None, seed: int, held_out_seed: int = 0
) -> ClassificationData:
    """Reads a task's data, and draws as many rows as wanted, each part with the label shares of what it is drawn from.

    Args:
        data: As :func:`~edge_client.data.sources.open_rows` takes it, in splits: a folder with ``train.jsonl``,
            ``validation.jsonl`` and ``test.jsonl``, a hub data set such as ``"nyu-mll/glue:mrpc"``, or a map of splits.
            Names of labels are read from the folder's ``meta.json`` or the data set's features, if there.
        train: Most training rows; None: all that are not taken for selection.
        selection: Rows taken from the training split to choose settings by.
        test: Most rows for the final score; None: all.
        seed: Draws the training rows.
        held_out_seed: Draws the selection and test rows, which runs of several seeds share.

    Raises:
        DataError: The data cannot be read, a row lacks text or label, or too few are left to train on.

    Reference: Wang et al., "GLUE", 2019, arXiv:1804.07461, for MRPC, RTE, SST-2 and QQP; Zhang, Zhao, LeCun,
    "Character-level Convolutional Networks for Text Classification", 2015, arXiv:1509.01626, for AG News.
    """
    _check_splits(data)
    opened, (test_split, final) = open_rows(data, "train"), _final_rows(data)
    names = _label_names(data, opened)
    rows, tested = _uniform(opened, "train", names), _uniform(final, test_split, names)
    parts = draw_parts(
        rows, tested, train=train, selection=selection, test=test, seed=seed, held_out_seed=held_out_seed
    )
    return ClassificationData(
        labels=names,
        text_fields=tuple(field for field in rows[0] if field != "label"),
        train=parts.train,
        selection=parts.selection,
        test=parts.test,
        test_split=test_split,
    )


def _check_splits(data: object) -> None:
    """A single file or list of rows would be opened as every split: the final rows would be the training rows."""
    if not isinstance(data, (str, Path, Mapping)) or (isinstance(data, (str, Path)) and Path(data).is_file()):
        raise DataError(
            "expected data in splits: a folder with train.jsonl and others, a hub data set, or a map of splits"
        )


def _final_rows(data: object) -> tuple[str, Rows]:
    rows = _test_rows(data)
    if rows is None or all(whole_number(rows[index].get("label")) == HIDDEN for index in range(len(rows))):
        return "validation", open_rows(data, "validation")
    return "test", rows


def _test_rows(data: object) -> Rows | None:
    if isinstance(data, Mapping):
        return open_rows(data, "test") if "test" in data else None
    if Path(str(data)).is_dir():
        return open_rows(data, "test") if any(Path(str(data)).glob("test.*")) else None
    try:
        return open_rows(data, "test")
    except DataError:  # a hub data set need not have one; if it is the hub that fails, so does the next split
        return None


def _label_names(data: object, rows: Rows) -> tuple[str, ...]:
    """As stated beside the data; else numbers stand for themselves, and text is sorted."""
    names = _stated_names(data, rows) or _names_in([rows[index].get("label") for index in range(len(rows))])
    if not 2 <= len(names) <= _LABELS_MAX:
        raise DataError(f"expected a field 'label' with 2 to {_LABELS_MAX} values, whole numbers from 0 or text")
    return tuple(names)


def _names_in(labels: Sequence[object]) -> list[str]:
    texts = {label for label in labels if isinstance(label, str)}
    if any(whole_number(text) is None for text in texts):
        return sorted(texts)
    largest = max((number for label in labels if (number := whole_number(label)) is not None), default=HIDDEN)
    return [str(index) for index in range(min(largest, _LABELS_MAX) + 1)]


def _stated_names(data: object, rows: Rows) -> list[str] | None:
    feature = (getattr(rows, "features", None) or {}).get("label")
    names = getattr(feature, "names", None)
    if names is None and isinstance(data, (str, Path)) and (Path(data) / "meta.json").is_file():
        names = _from_meta(Path(data) / "meta.json")
    return names


def _from_meta(path: Path) -> list[str] | None:
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("labels")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: expected a JSON object, which may state 'labels' ({error})") from error
    if names is None:
        return None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)):
        raise DataError(f"{path}: labels: expected a list of names, each once, got {names!r}")
    return names


def _uniform(rows: Rows, split: str, names: Sequence[str]) -> list[Row]:
    """All rows under the same field names, with label indices."""
    columns = _text_columns(rows[0], split)
    fields = ("sentence1", "sentence2") if len(columns) == 2 else ("sentence",)
    return [
        _row(rows[index], f"{split} row {index}", dict(zip(fields, columns, strict=True)), names)
        for index in range(len(rows))
    ]


def _text_columns(row: Mapping[str, object], split: str) -> tuple[str, ...]:
    for columns in (*_PAIRS, *_SINGLES):
        if all(column in row for column in columns):
            return columns
    known = ", ".join("+".join(columns) for columns in (*_PAIRS, *_SINGLES))
    raise DataError(f"{split} row 0: expected the text in one of {known}, there are {', '.join(row)}")


def _row(row: Mapping[str, object], where: str, columns: Mapping[str, str], names: Sequence[str]) -> Row:
    texts: dict[str, str | int] = {}
    for field, column in columns.items():
        text = row.get(column)
        if not isinstance(text, str):
            raise DataError(f"{where}: column {column!r}: expected text, got {type(text).__name__}")
        texts[field] = text
    return texts | {"label": label_index(row.get("label"), names, where)}
