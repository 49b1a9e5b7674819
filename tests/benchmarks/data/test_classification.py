import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data.classification import ClassificationData, load_classification
from benchmarks.data.parts import stratified_sample
from edge_client.errors import DataError

Row = Mapping[str, object]


def rows(count: int, *, split: str = "train", share: float = 0.25) -> list[Row]:
    """Every fourth row is positive."""
    return [{"sentence": f"{split} {i}", "label": int(i % 4 < 4 * share)} for i in range(count)]


def load(data: object, **changed: int | None) -> ClassificationData:
    settings: dict[str, int | None] = {"train": 40, "selection": 20, "test": 8, "seed": 3}
    return load_classification(data, **settings | changed)  # type: ignore[arg-type]


def texts(part: Sequence[Row]) -> list[object]:
    return [row["sentence"] for row in part]


def write(folder: Path, **splits: Sequence[Row]) -> Path:
    for split, content in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_a_stratified_sample_keeps_the_label_shares(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    drawn = stratified_sample(labels, count, np.random.default_rng(data.draw(st.integers(0, 99))))
    assert len(drawn) == len(set(drawn.tolist())) == count
    found, all_ = Counter(labels[index] for index in drawn), Counter(labels)
    assert all(abs(found[label] - count * all_[label] / len(labels)) < 1 for label in all_)


def test_every_row_can_be_drawn() -> None:
    seen = {int(i) for seed in range(40) for i in stratified_sample([0, 1] * 5, 2, np.random.default_rng(seed))}
    assert seen == set(range(10))


def test_parts_share_no_row_and_keep_the_label_shares() -> None:
    found = load({"train": rows(100), "test": rows(16, split="test")})
    assert (len(found.train), len(found.selection), len(found.test)) == (40, 20, 8)
    assert not set(texts(found.train)) & set(texts(found.selection))
    for part in (found.train, found.selection, found.test):
        assert sum(int(str(row["label"])) for row in part) == len(part) / 4


def test_all_rows_are_there_if_no_number_is_given() -> None:
    found = load({"train": rows(100), "test": rows(16, split="test")}, train=None, test=None)
    assert sorted(texts([*found.train, *found.selection])) == sorted(texts(rows(100)))
    assert texts(found.test) == texts(rows(16, split="test"))


def test_the_seed_draws_the_training_rows_and_nothing_else() -> None:
    data = {"train": rows(200), "test": rows(40, split="test")}
    one, same, other = load(data), load(data), load(data, seed=4)
    assert one == same
    assert texts(one.train) != texts(other.train)
    assert (one.selection, one.test) == (other.selection, other.test)
    assert texts(load(data, held_out_seed=1).selection) != texts(one.selection)


def test_hidden_test_labels_leave_the_validation_split(tmp_path: Path) -> None:
    shown, hidden = rows(8, split="validation"), [{"sentence": "?", "label": -1}] * 8
    for data in (
        {"train": rows(60), "validation": shown, "test": hidden},
        {"train": rows(60), "validation": shown},
        write(tmp_path, train=rows(60), validation=shown, test=hidden),
    ):
        found = load(data)
        assert found.test_split == "validation"
        assert texts(found.test) == texts(shown)


def test_shown_test_labels_are_the_final_ones(tmp_path: Path) -> None:
    folder = write(tmp_path, train=rows(60), validation=rows(8), test=rows(8, split="test"))
    assert load(str(folder)).test_split == "test"


def test_one_hidden_label_among_shown_ones_is_refused() -> None:
    with pytest.raises(DataError, match=r"test row 1: label -1 .* marks a hidden label"):
        load({"train": rows(60), "test": [{"sentence": "a", "label": 0}, {"sentence": "b", "label": -1}]})


@pytest.mark.parametrize(
    ("columns", "fields"),
    [
        (("sentence",), ("sentence",)),
        (("text",), ("sentence",)),
        (("sentence1", "sentence2"), ("sentence1", "sentence2")),
        (("question1", "question2"), ("sentence1", "sentence2")),
        (("premise", "hypothesis"), ("sentence1", "sentence2")),
        (("question", "sentence"), ("sentence1", "sentence2")),
    ],
)
def test_texts_are_found_under_the_names_in_use(columns: tuple[str, ...], fields: tuple[str, ...]) -> None:
    split = [{column: f"{column} {i}" for column in columns} | {"label": i % 2, "idx": i} for i in range(60)]
    found = load({"train": split, "test": split})
    assert found.text_fields == fields
    assert set(found.train[0]) == {*fields, "label"}
    assert all(str(found.train[0][field]).startswith(column) for field, column in zip(fields, columns, strict=True))


def test_labels_have_the_names_stated_beside_the_data(tmp_path: Path) -> None:
    folder = write(tmp_path, train=rows(60), validation=rows(8))
    assert load(folder).labels == ("0", "1")
    (folder / "meta.json").write_text('{"labels": ["bad", "good"]}')
    assert load(folder).labels == ("bad", "good")


def test_labels_have_the_names_of_the_features() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])}
    )
    split = datasets.Dataset.from_dict({"text": ["a"] * 40, "label": [0, 1] * 20}, features=features)
    found = load({"train": split, "test": split}, train=None, selection=0)
    assert found.labels == ("ham", "spam")
    assert [row["label"] for row in found.train] == [0, 1] * 20


@pytest.mark.parametrize("written", [("ham", "spam"), ("0", "1"), (0.0, 1.0), (np.int64(0), np.int64(1))])
def test_a_label_may_be_written_in_any_way(written: tuple[object, object]) -> None:
    split = [{"sentence": "a", "label": written[i % 2]} for i in range(60)]
    assert Counter(row["label"] for row in load({"train": split, "test": split}).train) == {0: 20, 1: 20}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"sentence": "a"}, "train row 60: label None"),
        ({"sentence": "a", "label": -1}, r"train row 60: label -1 .* marks a hidden label"),
        ({"sentence": None, "label": 1}, "train row 60: column 'sentence': expected text, got NoneType"),
        ({"sentence": "a", "label": [1]}, r"train row 60: label \[1\]"),
        ({"label": 1}, "train row 60: column 'sentence'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(bad: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load({"train": [*rows(60), bad], "test": rows(8)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"train": [{"words": "a", "label": i % 2} for i in range(60)], "test": rows(8)},
            "expected the text in one of",
        ),
        ({"train": [{"sentence": "a", "label": 0}] * 60, "test": rows(8)}, "with 2 to 1000 values"),
        ({"train": [{"sentence": "a", "label": i} for i in range(1002)], "test": rows(8)}, "with 2 to 1000 values"),
        ({"train": rows(20), "test": rows(8)}, "selection: expected 0 to 19 of 20 training rows, got 20"),
        ({"train": rows(60)}, "no split 'validation'"),
    ],
)
def test_data_that_make_no_task_are_refused(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(data)


def test_data_without_splits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60)))
    for data in (rows(60), tmp_path / "rows.jsonl", str(tmp_path / "rows.jsonl")):
        with pytest.raises(DataError, match="expected data in splits"):
            load(data)


@pytest.mark.parametrize("splits", [("train", "validation"), ("train", "validation", "test")])
def test_a_hub_data_set_may_have_a_test_split(splits: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(path: str, name: str | None, *, split: str) -> object:
        assert (path, name) == ("owner/name", "config")
        if split not in splits:
            raise ValueError(f"Unknown split {split!r}")
        return datasets.Dataset.from_list(rows(60, split=split))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("owner/name:config").test_split == splits[-1]


@pytest.mark.parametrize("meta", ["{", "[]", '{"labels": "ab"}', '{"labels": [1, 2]}', '{"labels": ["a", "a"]}'])
def test_a_broken_meta_file_is_named(tmp_path: Path, meta: str) -> None:
    folder = write(tmp_path, train=rows(60), validation=rows(8))
    (folder / "meta.json").write_text(meta)
    with pytest.raises(DataError, match=r"meta\.json"):
        load(folder)
