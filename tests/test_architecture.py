"""The house stands as drawn: arrows point left, imports are light, packages say what they offer."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("protocol", "edge_client", "aggregator", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
INITS = [path for path in SOURCES if path.name == "__init__.py"]
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "trl", "matplotlib", "ray")


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, cwd="/"
    )


def test_every_arrow_points_left() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    done = python(f"import sys, {package}; print(*({set(HEAVY)!r} & sys.modules.keys()))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_every_file_says_in_one_line_why_it_exists(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text
    assert text.splitlines()[0].endswith("."), "the first line of a module's docstring is one sentence"


@pytest.mark.parametrize("path", INITS, ids=label)
def test_a_package_offers_what_it_imports_and_nothing_else(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    public = {name for name in names if not name.startswith("_")}
    lists = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
    ]
    offered = lists[0] if lists else []
    assert len(lists) <= 1, "a package's __init__ re-exports and states __all__, nothing else"
    assert set(offered) == public
    assert len(offered) == len(public)


@pytest.mark.parametrize(
    ("package", "shadowed"),
    [
        ("edge_client", "protocol"),
        ("aggregator", "protocol"),
        ("benchmarks", "protocol"),
        ("benchmarks", "edge_client"),
        ("benchmarks", "aggregator"),
    ],
)
@pytest.mark.parametrize("layout", ["package", "module", "namespace"])
def test_a_foreign_package_that_shadows_ours_is_named(tmp_path: Path, package: str, shadowed: str, layout: str) -> None:
    foreign = tmp_path / (f"{shadowed}.py" if layout == "module" else f"{shadowed}/__init__.py")
    foreign.parent.mkdir(exist_ok=True)
    if layout == "namespace":  # a folder without __init__.py never wins over a package: nothing to complain about
        assert python(f"import {package}", tmp_path).returncode == 0
        return
    foreign.write_text('"""Not ours."""')
    done = python(f"import {package}", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: expected tributary-fl's package {shadowed!r}")
    assert str(foreign) in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_wheel_holds_the_four_packages_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert {Path(name).suffix for name in names} <= {".py", ".typed", ".toml"}
    if (ROOT / "benchmarks/targets.toml").exists():
        assert "benchmarks/targets.toml" in names
