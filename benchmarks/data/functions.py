"""Reads documented functions out of Python source: what each says it does, and how it does it.

Nothing is imported or run: files are parsed with :mod:`ast`, packages are found through :mod:`importlib` without
executing them.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["Function", "PackageNotFoundError", "functions_of", "package_folder", "source_files"]

QUERY_WORDS = (5, 25)
"""Fewer words say too little to search with, more are no query that anybody types."""
BODY_LINES = (3, 60)
"""Shorter bodies delegate, longer ones are cut by the encoder long before they end."""
PROSE = 0.75
"""Least share of a query's characters that are ASCII letters or spaces: drops formulas, tables, other languages."""

_TEST_NAMES = frozenset({"test", "tests", "testing", "conftest", "_test", "_tests"})
_STOP_OPENINGS = ("see ", ">>>", "..", ":", "deprecated", "todo", "alias", "internal", "@")
_Node = ast.FunctionDef | ast.AsyncFunctionDef


class PackageNotFoundError(Exception):
    """A package that a benchmark reads is not installed."""


@dataclass(frozen=True, kw_only=True)
class Function:
    """One documented function."""

    query: str
    """First paragraph of its docstring, on one line."""
    parameters: tuple[str, ...]
    """Names of its parameters, ``self`` and ``cls`` left out."""
    body: str
    """Source of its statements, dedented, without the docstring; its own name is replaced by ``_``."""
    package: str
    """Import name of the package."""
    file: str
    """Path below the package's folder, POSIX form."""
    name: str
    """Qualified name inside the file, such as ``Graph.add_edge``."""
    line: int
    """Line of its ``def``, from 1."""

    @property
    def code(self) -> str:
        """What is searched: parameters and body, neither name nor docstring."""
        return f"{' '.join(self.parameters)}\n{self.body}"


def package_folder(package: str) -> Path:
    """The folder of an installed top-level package, which stays unimported.

    Raises:
        PackageNotFoundError: It is not installed, or is a single file.
    """
    spec = PathFinder.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PackageNotFoundError(
            f"expected an installed package {package!r} to read functions from, found none; "
            "install the extra with `pip install tributary-fl[demo]`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def source_files(folder: Path) -> list[Path]:
    """The package's Python files in path order, its tests left out."""
    files = (path for path in folder.rglob("*.py") if not _is_test(path.relative_to(folder)))
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def functions_of(source: str, *, package: str, file: str) -> Iterator[Function]:
    r"""The functions of one file that are worth searching for, in source order.

    Args:
        source: The file's text; one that does not parse has no functions.
        package: Recorded with each function.
        file: Recorded with each function.

    Example:
        >>> text = 'def area(r):\n    "Return the area of a circle."\n    a = r * r\n    a *= 3.14\n    return a\n'
        >>> [(f.query, f.parameters, f.body) for f in functions_of(text, package="p", file="f.py")]
        [('Return the area of a circle.', ('r',), 'a = r * r\na *= 3.14\nreturn a')]
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines()
    for name, node in _definitions(tree, ""):
        query, body = _query(node), _body(node, lines)
        if query and body:
            yield Function(
                query=query,
                parameters=_parameters(node.args),
                body=body,
                package=package,
                file=file,
                name=name,
                line=node.lineno,
            )


def _is_test(relative: Path) -> bool:
    return any(part.removesuffix(".py") in _TEST_NAMES or part.startswith("test_") for part in relative.parts)


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, _Node]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Node):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")


def _parameters(arguments: ast.arguments) -> tuple[str, ...]:
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *starred]
    return tuple(argument.arg for argument in named if argument.arg not in ("self", "cls"))


def _query(node: _Node) -> str | None:
    docstring = ast.get_docstring(node)
    if docstring is None:
        return None
    query = " ".join(docstring.split("\n\n", 1)[0].replace("`", "").split())
    prose = sum(c.isascii() and (c.isalpha() or c == " ") for c in query)
    usable = (
        QUERY_WORDS[0] <= len(query.split()) <= QUERY_WORDS[1]
        and prose >= PROSE * len(query)
        and not query.lower().startswith(_STOP_OPENINGS)
    )
    return query if usable else None


def _body(node: _Node, lines: list[str]) -> str | None:
    statements = node.body[1:]  # the docstring is the first
    if not statements:
        return None
    kept = lines[statements[0].lineno - 1 : node.end_lineno]
    if not BODY_LINES[0] <= sum(bool(line.strip()) for line in kept) <= BODY_LINES[1]:
        return None
    return re.sub(rf"\b{re.escape(node.name)}\b", "_", textwrap.dedent("\n".join(kept)))
