"""Parts of an image set's classes: renumbered, stratified, apart from each other, and what is no such set is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.data.images import ImageData, load_images
from edge_client.errors import DataError

CLASSES = ("bird", "cat", "dog")


def arrays(train: int = 30, test: int = 9) -> dict[str, Any]:
    """Images whose first value is their class's index and whose second value is their own number."""
    found: dict[str, Any] = {"classes": np.array(CLASSES)}
    for split, count in (("train", train), ("test", test)):
        images = np.zeros((count, 4, 4, 3), np.uint8)
        images[:, 0, 0, 0] = labels = np.arange(count) % len(CLASSES)
        images[:, 0, 0, 1] = np.arange(count)
        found |= {f"x_{split}": images, f"y_{split}": labels.astype(np.uint8)}
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", **arrays())
    return tmp_path / "images.npz"


def load(data: object, **changed: Any) -> ImageData:
    settings: dict[str, Any] = {"classes": None, "train": None, "selection": 6, "test": None, "seed": 0}
    return load_images(data, **settings | changed)  # type: ignore[arg-type]


def numbers(rows: Any) -> list[int]:
    return [int(row["image"][0, 0, 1]) for row in rows]


def test_a_file_and_the_folder_it_lies_in_are_the_same_data(file: Path) -> None:
    one, other = load(file), load(str(file.parent))
    assert one.labels == other.labels == CLASSES
    for part in ("train", "selection", "test"):
        assert numbers(getattr(one, part)) == numbers(getattr(other, part))


def test_classes_that_are_chosen_are_numbered_in_the_order_given(file: Path) -> None:
    found = load(file, classes=("dog", "bird"))
    assert found.labels == ("dog", "bird")
    for rows in (found.train, found.selection, found.test):
        assert {(int(row["image"][0, 0, 0]), row["label"]) for row in rows} == {(2, 0), (0, 1)}


def test_parts_share_no_image_and_keep_the_label_shares(file: Path) -> None:
    found = load(file)
    assert sorted(numbers([*found.train, *found.selection])) == list(range(30))
    assert set(Counter(row["label"] for row in found.selection).values()) == {2}
    assert len(load(file, train=9, test=3).train) == 9


def test_images_come_from_a_data_set_with_named_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    given = arrays()

    def load_dataset(path: str, name: str | None, *, split: str) -> object:
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
        rows = {"img": list(given[f"x_{split}"]), "label": given[f"y_{split}"].tolist()}
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load("owner/name", classes=("dog", "bird"))
    assert {(np.asarray(row["image"])[0, 0, 0], row["label"]) for row in found.test} == {(2, 0), (0, 1)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": ("dog", "cow")}, "two or more of bird, cat, dog, each once, got dog, cow"),
        ({"classes": ("dog", "dog")}, "each once"),
        ({"classes": ("dog",)}, "two or more"),
        ({"selection": 30}, "selection: expected 0 to 29"),
    ],
)
def test_classes_and_numbers_that_cannot_be_had_are_refused(file: Path, changed: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(file, **changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("classes"), "expected an .npz file with the arrays"),
        (lambda a: a.update(y_train=np.zeros(2)), "arrays of one length"),
        (lambda a: a.update(y_train=np.array(["a"] * 30)), "train row 0: label .*a.*: expected a class's index"),
    ],
)
def test_a_file_that_is_no_image_set_is_named(file: Path, change: Any, message: str) -> None:
    content = arrays()
    change(content)
    np.savez(file, **content)
    with pytest.raises(DataError, match=message):
        load(file)


def test_a_folder_without_one_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected one \.npz file of images, found 0"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"expected an \.npz file"):
        load(tmp_path / "missing.npz")
