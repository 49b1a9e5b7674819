import csv
import io
import json

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from edge_client.data.sources import has_split, open_rows
from edge_client.errors import DataError

ROWS = [{"sentence": 'one, "two"', "label": "a"}, {"sentence": "three\nfour", "label": "b"}]


class TorchRows(torch.utils.data.Dataset):
    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return ROWS[index]


def write_jsonl(path):
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


def write_csv(path, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["sentence", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_npz(path):
    np.savez(path, **{column: [row[column] for row in ROWS] for column in ROWS[0]})
    return path


@pytest.mark.parametrize(
    "source",
    [
        lambda folder: ROWS,
        lambda folder: datasets.Dataset.from_list(ROWS),
        lambda folder: TorchRows(),
        lambda folder: datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
        lambda folder: write_jsonl(folder / "rows.jsonl"),
        lambda folder: str(write_jsonl(folder / "rows.jsonl")),
        lambda folder: write_csv(folder / "rows.csv"),
        lambda folder: write_csv(folder / "rows.tsv", "\t"),
        lambda folder: write_jsonl(folder / "train.jsonl").parent,
        lambda folder: write_npz(folder / "rows.npz"),
        lambda folder: write_npz(folder / "train.npz").parent,
    ],
    ids=["list", "datasets", "torch", "splits", "jsonl", "str", "csv", "tsv", "folder", "npz", "npz-folder"],
)
def test_every_kind_of_source_gives_the_same_rows(source, tmp_path):
    rows = open_rows(source(tmp_path))
    assert [dict(rows[index]) for index in range(len(rows))] == ROWS


def test_the_split_picks_the_file_of_a_folder(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    (tmp_path / "validation.jsonl").write_text('{"sentence": "held out", "label": "a"}\n')
    assert open_rows(tmp_path, "validation")[0]["sentence"] == "held out"
    assert [has_split(tmp_path, split) for split in ("train", "validation", "test")] == [True, True, False]


def test_a_folder_of_pictures_is_rows_of_images_with_the_folder_as_label(tmp_path):
    for label, name, colour in [("dog", "b.jpg", 9), ("dog", "a.PNG", 200), ("cat", "z.png", 50)]:
        (tmp_path / "train" / label).mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (5, 4), (colour, 0, 0)).save(tmp_path / "train" / label / name)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    rows = open_rows(tmp_path)
    found = [(rows[index]["label"], rows[index]["image"]) for index in range(len(rows))]
    assert [label for label, _ in found] == ["cat", "dog", "dog"]
    assert [image.getpixel((0, 0))[0] for _, image in found[:2]] == [50, 200]
    (tmp_path / "train" / "cat" / "z.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cat/z\.png: not a readable picture"):
        rows[0]


def npz(**columns):
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a zip", "not a readable"),
        (npz(a=[1, 2])[:-9], "not a readable"),
        (
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }".ljust(117)
            + b"\n\x07",
            "not a readable",
        ),
        (npz(a=np.array([{}])), "not a readable"),
        (npz(a=[1, 2], b=[1]), "expected arrays of one length"),
        (npz(a=[1, 2], b=3), "expected arrays of one length"),
        (npz(), "expected arrays of one length"),
        (npz(a=np.zeros((0, 3))), "holds no rows"),
    ],
)
def test_a_broken_npz_file_is_named(content, message, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_rows(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', r"x\.jsonl, line 2: not JSON"),
        ("x.jsonl", '{"a": 1}\n\n[1]\n', r"x\.jsonl, line 3: expected a JSON object, got list"),
        ("x.csv", "a,b\n1,2\n1\n", r"x\.csv, line 3: expected 2 fields"),
        ("x.csv", "a,b\n1,2,3\n", r"x\.csv, line 2: expected 2 fields"),
        ("x.csv", 'a,b\n"1"x,2\n', r"x\.csv, line 2: "),
        ("x.jsonl", "", "holds no rows"),
    ],
)
def test_a_broken_file_is_named_with_its_line(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda folder: folder, r"expected a file train\.jsonl"),
        (lambda folder: folder / "missing.jsonl", "cannot be read"),
        (lambda folder: 7, "got int"),
        (lambda folder: {"test": ROWS}, "no split 'train'; it has test"),
        (lambda folder: [], "holds no rows"),
    ],
)
def test_what_is_no_data_is_refused(source, message, tmp_path):
    with pytest.raises(DataError, match=message):
        open_rows(source(tmp_path))


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="UTF-8"):
        open_rows(tmp_path / "x.jsonl")
