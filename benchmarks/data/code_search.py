"""Federated code search: each device owns one code base and learns to find its functions by what they are for.

A pair is a function's docstring (the query), and its parameters and body without name and docstring (the target).
Nothing is labelled by hand. Files, not functions, are split, so no held-out function has a neighbour in the training
part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path

from benchmarks.data.functions import Function, functions_of, package_folder, source_files

__all__ = ["CODE_BASES", "CodeSearch", "load_code_search"]

CODE_BASES = ("networkx", "sklearn", "scipy", "sympy")
"""Import names of the packages, one a device. The ``demo`` extra brings them all."""

_HELD_OUT_SHARE = 0.3
"""Share of the files that is held out."""


@dataclass(frozen=True, kw_only=True)
class CodeSearch:
    """The data of one federated code-search run."""

    train: Mapping[str, Sequence[Function]]
    """Training functions by package."""
    held_out: Sequence[Function]
    """Queries and the pool that is searched, from all packages."""
    versions: Mapping[str, str]
    """Version of each package by distribution name."""


def load_code_search(
    packages: Sequence[str] = CODE_BASES,
    *,
    train_per_package: int | None,
    held_out_per_package: int | None,
    per_file: int | None,
    seed: int,
    folders: Mapping[str, Path] | None = None,
) -> CodeSearch:
    """Reads the pairs of all devices.

    Which files are held out, and which functions of them are asked for, never changes; ``seed`` draws the training
    functions, so that runs of several seeds are compared on the same queries.

    Args:
        packages: Import names, one a device.
        train_per_package: Most training functions a device has; None: all.
        held_out_per_package: Most held-out functions of each package; None: all.
        per_file: Most functions taken of one file, in either part; None: all. Functions of one file are alike: few of
            each of many files teach more, and ask for more, than many of each of few.
        seed: Draws the training functions.
        folders: Where each package lies; None: as installed.

    Raises:
        PackageNotFoundError: A package is not installed.
    """
    roots = folders or {package: package_folder(package) for package in packages}
    seen: set[str] = set()
    held_out = [
        function
        for package in packages
        for function in _draw(package, roots[package], _Part(True, held_out_per_package, per_file, 0), seen)
    ]
    part = _Part(False, train_per_package, per_file, seed)
    train = {package: _draw(package, roots[package], part, seen) for package in packages}
    return CodeSearch(train=train, held_out=held_out, versions={} if folders else _versions(packages))


@dataclass(frozen=True)
class _Part:
    held_out: bool
    count: int | None
    per_file: int | None
    seed: int


def _draw(package: str, folder: Path, part: _Part, seen: set[str]) -> list[Function]:
    """The first ``count`` functions in a random order of files; no more files are read than that takes."""
    drawn: list[Function] = []
    files = [file for file in _relative(folder) if _is_held_out(f"{package}/{file}") == part.held_out]
    for file in _shuffled(files, f"{part.seed} {package}"):
        source = (folder / file).read_text(encoding="utf-8", errors="replace")
        found = {f"{f.name}:{f.line}": f for f in _unseen(functions_of(source, package=package, file=file), seen)}
        drawn += [found[name] for name in _shuffled(found, f"{part.seed} {package}/{file}")[: part.per_file]]
        if part.count is not None and len(drawn) >= part.count:
            return drawn[: part.count]
    return drawn


def _relative(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in source_files(folder)]


def _unseen(functions: Iterable[Function], seen: set[str]) -> Iterator[Function]:
    """Drops functions whose query or body was seen before, up to case, digits, punctuation and white space."""
    for function in functions:
        keys = {_normalised(function.query), _normalised(function.body)}
        if not keys & seen:
            seen |= keys
            yield function


def _normalised(text: str) -> str:
    return " ".join(re.findall("[a-z]+", text.lower()))


def _is_held_out(name: str) -> bool:
    return _hash(f"held-out {name}") < _HELD_OUT_SHARE


def _shuffled(names: Iterable[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: _hash(f"{salt} {name}"))


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64


def _versions(packages: Sequence[str]) -> dict[str, str]:
    distributions = packages_distributions()
    names = sorted({distributions[package][0] for package in packages})
    return {name: version(name) for name in names}
