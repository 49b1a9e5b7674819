import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.data.functions import PackageNotFoundError, functions_of, package_folder, source_files

BODY = "    total = 0\n    for x in xs:\n        total += x\n    return total\n"


def found(source: str) -> list[tuple[str, str]]:
    return [(f.name, f.query) for f in functions_of(source, package="p", file="f.py")]


def documented(docstring: str, body: str = BODY, name: str = "add") -> str:
    return f'def {name}(xs):\n    """{docstring}"""\n{body}'


def test_query_is_the_first_paragraph_on_one_line() -> None:
    source = documented("Return the sum\n    of all `numbers`.\n\n    More text that is not asked for.")
    assert found(source) == [("add", "Return the sum of all numbers.")]


def test_body_holds_neither_docstring_nor_the_functions_own_name() -> None:
    body = "    if not xs:\n        return 0\n    # adds the rest\n    return xs[0] + add(xs[1:])\n"
    (function,) = functions_of(documented("Return the sum of all numbers.", body), package="p", file="f.py")
    assert function.body == "if not xs:\n    return 0\n# adds the rest\nreturn xs[0] + _(xs[1:])"


def test_parameters_of_all_kinds_are_named_but_for_self() -> None:
    source = 'def f(self, a, /, b: int, *rest, c=1, **more):\n    """Return the sum of all numbers."""\n' + BODY
    (function,) = functions_of(source, package="p", file="f.py")
    assert function.parameters == ("a", "b", "c", "rest", "more")
    assert function.code == "a b c rest more\n" + function.body


def test_methods_carry_their_class() -> None:
    method = textwrap.indent(documented("Return the sum of all numbers."), "    ")
    assert found("class Sums:\n" + method) == [("Sums.add", "Return the sum of all numbers.")]


def test_functions_inside_functions_are_not_taken() -> None:
    inner = textwrap.indent(documented("Return what is inside of it.", name="inner"), "    ")
    assert found(documented("Return the sum of all numbers.", inner + BODY)) == [
        ("add", "Return the sum of all numbers.")
    ]


@pytest.mark.parametrize(
    "docstring",
    [
        "Too short.",
        "See the documentation of the other function.",
        "Возвращает сумму всех чисел из списка.",
        "x = 1 + 2 * 3 - 4 / 5 ** 6 % 7 == 8 | 9 & 10",
        "word " * 26,
    ],
)
def test_docstrings_that_are_no_query_are_dropped(docstring: str) -> None:
    assert found(documented(docstring)) == []


@pytest.mark.parametrize("body", ["    return sum(xs)\n", "    x = 1\n" * 61])
def test_bodies_too_short_or_too_long_are_dropped(body: str) -> None:
    assert found(documented("Return the sum of all numbers.", body)) == []


@pytest.mark.parametrize("source", ["def broken(:\n", "x = 1\0\n", ""])
def test_a_file_that_does_not_parse_has_no_functions(source: str) -> None:
    assert found(source) == []


def test_source_files_are_sorted_and_tests_left_out(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "tests/c.py", "test_d.py", "sub/conftest.py", "sub/e.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in source_files(tmp_path)] == ["a.py", "b.py", "sub/e.py"]


def test_finding_a_package_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive").mkdir()
    (tmp_path / "explosive" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_folder("explosive") == tmp_path / "explosive"
    assert "explosive" not in sys.modules


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(PackageNotFoundError, match=r"'no_such_package'.*install"):
        package_folder("no_such_package")
