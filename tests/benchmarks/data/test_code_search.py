from collections import Counter
from pathlib import Path

import pytest

from benchmarks.data.code_search import CodeSearch, load_code_search

SHAPES = ["circle", "square", "triangle", "polygon", "ellipse", "sphere", "cube", "torus", "cone", "prism"]
FILES = 24


def write_package(folder: Path, verb: str) -> Path:
    for number in range(FILES):
        name = chr(ord("a") + number)
        functions = [
            f'def f{i}(x):\n    """{verb} the {name * 3} area of a {shape}."""\n'
            f"    {verb}_{name} = x\n    {shape} = {verb}_{name} * {i}\n    return {shape}\n\n"
            for i, shape in enumerate(SHAPES)
        ]
        folder.mkdir(exist_ok=True)
        (folder / f"module_{name}.py").write_text("".join(functions))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {verb: write_package(tmp_path / verb, verb) for verb in ("compute", "draw")}


def load(
    folders: dict[str, Path],
    seed: int = 0,
    train: int | None = 20,
    held_out: int | None = 10,
    per_file: int | None = None,
) -> CodeSearch:
    return load_code_search(
        tuple(folders),
        train_per_package=train,
        held_out_per_package=held_out,
        per_file=per_file,
        seed=seed,
        folders=folders,
    )


def test_every_function_is_in_exactly_one_part(folders: dict[str, Path]) -> None:
    data = load(folders, train=None, held_out=None)
    everything = [*data.held_out, *(f for functions in data.train.values() for f in functions)]
    assert len(everything) == len({f.query for f in everything}) == 2 * FILES * len(SHAPES)


def test_no_file_is_in_both_parts(folders: dict[str, Path]) -> None:
    data = load(folders, train=None, held_out=None)
    held_out = {(f.package, f.file) for f in data.held_out}
    training = {(f.package, f.file) for functions in data.train.values() for f in functions}
    assert held_out
    assert training
    assert not held_out & training


def test_a_device_has_functions_of_its_own_package_only(folders: dict[str, Path]) -> None:
    data = load(folders)
    assert {verb: {f.package for f in functions} for verb, functions in data.train.items()} == {
        "compute": {"compute"},
        "draw": {"draw"},
    }


def test_caps_hold_for_every_package(folders: dict[str, Path]) -> None:
    data = load(folders)
    assert [len(functions) for functions in data.train.values()] == [20, 20]
    assert sorted(f.package for f in data.held_out) == ["compute"] * 10 + ["draw"] * 10


def test_of_each_file_no_more_than_asked_for_are_taken_and_not_always_the_first(folders: dict[str, Path]) -> None:
    data = load(folders, per_file=2)
    for functions in (*data.train.values(), data.held_out):
        assert set(Counter((f.package, f.file) for f in functions).values()) == {2}
    assert len({f.name for functions in data.train.values() for f in functions}) > 2


def test_the_same_seed_draws_the_same_data(folders: dict[str, Path]) -> None:
    assert load(folders, seed=3) == load(folders, seed=3)


def test_another_seed_draws_other_training_functions_for_the_same_queries(folders: dict[str, Path]) -> None:
    one, other = load(folders, seed=1), load(folders, seed=2)
    assert one.held_out == other.held_out
    assert one.train != other.train


def test_copies_up_to_case_digits_and_punctuation_are_taken_once(tmp_path: Path) -> None:
    source = 'def f(x):\n    """Return the area of a circle."""\n    y = x\n    z = {}\n    return z\n'
    folders = {name: tmp_path / name for name in ("one", "two")}
    for number, folder in enumerate(folders.values()):
        folder.mkdir()
        (folder / "m.py").write_text(source.format(number) + source.replace("circle.", "Circle !!").format(7))
    data = load(folders, train=None, held_out=None)
    assert len(data.held_out) + sum(map(len, data.train.values())) == 1
