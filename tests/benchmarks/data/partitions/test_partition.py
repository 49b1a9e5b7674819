import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.partitions import Partition, Recipe, Scheme, partition_rows
from benchmarks.data.partitions.dealing import UNUSED, deal_iid
from benchmarks.data.partitions.partition import rows_digest
from edge_client.errors import DataError

ROWS = [{"sentence": f"row {i}", "label": i % 3 % 2, "writer": "abcde"[i % 5]} for i in range(30)]
RECIPES = [
    Recipe(scheme=Scheme.IID, clients=4, seed=1),
    Recipe(scheme=Scheme.PRIOR_DIRICHLET, clients=4, alpha=0.5, seed=1),
    Recipe(scheme=Scheme.CLASS_DIRICHLET, clients=4, alpha=0.5, rows_min=3, seed=1),
    Recipe(scheme=Scheme.QUANTITY, clients=4, alpha=0.5, rows_min=2, seed=1),
    Recipe(scheme=Scheme.USERS, user_field="writer", seed=1),
    Recipe(scheme=Scheme.USERS, clients=3, user_field="writer", seed=1),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.scheme}-{recipe.clients}")
def test_a_stored_partition_comes_back_as_it_was(recipe: Recipe, tmp_path: Path) -> None:
    partition = partition_rows(ROWS, recipe)
    partition.save(tmp_path / "p.json")
    assert Partition.load(tmp_path / "p.json", ROWS) == partition
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: f"{recipe.scheme}-{recipe.clients}")
def test_clients_rows_and_sizes_are_those_of_the_owners(recipe: Recipe) -> None:
    partition = partition_rows(ROWS, recipe)
    parts = [partition.rows_of(client) for client in range(partition.clients)]
    assert [len(part) for part in parts] == partition.sizes.tolist()
    assert min(map(len, parts)) >= recipe.rows_min
    assert all(partition.owners[row] == client for client, part in enumerate(parts) for row in part)
    assert sum(map(len, parts)) == len(ROWS) - partition.owners.count(UNUSED)


def test_the_recipe_decides_what_is_dealt_by_what() -> None:
    by_user = partition_rows(ROWS, RECIPES[4])
    assert [ROWS[row]["writer"] for client in range(5) for row in by_user.rows_of(client)[:1]] == list("abcde")
    assert set(partition_rows(ROWS, RECIPES[5]).owners) == {UNUSED, 0, 1, 2}
    iid = deal_iid(30, 4, rng=np.random.default_rng(1))
    assert partition_rows(ROWS, RECIPES[0]).owners == tuple(iid.tolist())
    concentrated = Recipe(scheme=Scheme.PRIOR_DIRICHLET, clients=2, alpha=1e-9, seed=0)
    twice = [{"label": i % 2} for i in range(20)]
    parts = partition_rows(twice, concentrated)
    assert all(len({twice[row]["label"] for row in parts.rows_of(client)}) == 1 for client in range(2))


@pytest.mark.parametrize(("recipe", "field"), [(RECIPES[1], "label"), (RECIPES[2], "label"), (RECIPES[4], "writer")])
def test_a_row_without_the_field_is_named(recipe: Recipe, field: str) -> None:
    rows = [*ROWS[:7], {name: value for name, value in ROWS[7].items() if name != field}, *ROWS[8:]]
    with pytest.raises(DataError, match=f"row 7: expected a field '{field}'"):
        partition_rows(rows, recipe)


def test_the_digest_tells_any_change_of_the_rows() -> None:
    changed = [{**row, "sentence": "other"} if i == 17 else row for i, row in enumerate(ROWS)]
    digests = {rows_digest(rows) for rows in (ROWS, changed, ROWS[:-1], ROWS[::-1])}
    assert len(digests) == 4
    assert rows_digest([dict(reversed(row.items())) for row in ROWS]) == rows_digest(ROWS)


def test_pictures_are_told_apart_by_their_pixels_however_they_come() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert rows_digest([{"image": pixels}]) == rows_digest([{"image": Image.fromarray(pixels)}])
    others = [pixels + np.uint8(1), pixels.reshape(2, 8, 3), pixels.astype(np.int16)]
    assert len({rows_digest([{"image": image}]) for image in (pixels, *others)}) == 4
    with pytest.raises(TypeError, match="expected text, a number or a picture in a row, got object"):
        rows_digest([{"image": object()}])


def test_rows_other_than_those_it_was_made_for_are_refused(tmp_path: Path) -> None:
    partition_rows(ROWS, RECIPES[0]).save(tmp_path / "p.json")
    with pytest.raises(DataError, match=r"p\.json: made for 30 rows of SHA-256 \w{64}, but these are 29 rows"):
        Partition.load(tmp_path / "p.json", ROWS[:-1])
    with pytest.raises(DataError, match="made for 30 rows"):
        Partition.load(tmp_path / "p.json", ROWS[::-1])


Damage = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.update(format=2),
        lambda document: document.pop("format"),
        lambda document: document.update(owners=document["owners"][:-1]),
        lambda document: document.update(owners=[0] * 30),
        lambda document: document.update(owners=[UNUSED] * 30),
        lambda document: document.update(owners=[]),
        lambda document: document.update(owners=7),
        lambda document: document["owners"].__setitem__(0, -2),
        lambda document: document["owners"].__setitem__(0, 4),
        lambda document: document["owners"].__setitem__(0, 1 << 40),
        lambda document: document["owners"].__setitem__(0, True),
        lambda document: document["owners"].__setitem__(0, 1.0),
        lambda document: document["owners"].__setitem__(0, "1"),
        lambda document: document.update(digest="0" * 64),
        lambda document: document["recipe"].update(rows_min=9),
        lambda document: document["recipe"].update(clients=0),
        lambda document: document["recipe"].update(scheme="quantity", alpha=10**400),
        lambda document: document["recipe"].update(colour="red"),
        lambda document: document["recipe"].update(scheme="fair"),
        lambda document: document["recipe"].update(scheme="quantity"),
        lambda document: document.update(recipe=[]),
    ],
)
def test_a_damaged_file_is_refused(damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    partition_rows(ROWS, RECIPES[0]).save(path)
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"p\.json"):
        Partition.load(path, ROWS)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff\xfe", None])
def test_what_is_no_partition_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.json: expected a stored partition"):
        Partition.load(path, ROWS)
