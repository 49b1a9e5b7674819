import subprocess
import sys
from types import ModuleType

import pytest

from benchmarks import command_line
from benchmarks.command_line import BenchmarkError, Planned, UsageError, run_command

RAN: list[tuple[str, str | None]] = []


def plan(*, seed: str = "0", out: str | None = None) -> Planned:
    """Counts its runs.

    Args:
        seed: Seed.
        out: File.
    """
    if not str(seed).isdecimal():
        raise UsageError(f"--seed: expected a whole number, got {seed!r}")

    def run() -> None:
        if seed == "13":
            raise BenchmarkError("no luck: take another seed")
        RAN.append((seed, out))

    return Planned(run)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("counting_benchmark")
    module.plan = plan  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counting_benchmark", module)
    monkeypatch.setattr(command_line, "BENCHMARKS", {"counting": "counting_benchmark"})
    RAN.clear()


def test_a_plan_runs_once_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["counting", "--seed", "7"]) == 0
    assert RAN == [("7", None)]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["1e5", "a, b", "x # y", "[1]", "it's", "-"])
def test_a_value_arrives_as_it_was_typed(text: str) -> None:
    assert run_command(["counting", f"--out={text}"]) == 0
    assert [("0", text)] == RAN


@pytest.mark.parametrize(
    "flags",
    [
        ["--sede", "7"],
        ["--seed", "7", "--uot", "x.json"],
        ["7"],
        ["--seed=7", "run"],
        ["--seed=7", "_run"],
        ["--seed=7", "__init__"],
        ["--seed", "seven"],
        ["--seed", "2.5"],
    ],
)
def test_a_mistake_in_the_flags_exits_2_before_anything_ran(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["counting", *flags]) == 2
    assert RAN == []
    assert capsys.readouterr().err


def test_an_unknown_benchmark_exits_2_and_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["cuonting"]) == 2
    shown = capsys.readouterr().err
    assert "unknown benchmark 'cuonting'" in shown
    assert "\n  counting\n" in shown


def test_no_benchmark_exits_2_and_help_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([]) == 2
    assert run_command(["--help"]) == 0
    assert "\n  counting\n" in capsys.readouterr().out


def test_help_on_a_benchmark_exits_0_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["counting", "--help"]) == 0
    assert RAN == []
    shown = capsys.readouterr()
    assert "--seed" in shown.out + shown.err


def test_a_benchmark_that_fails_exits_1_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["counting", "--seed=13"]) == 1
    assert capsys.readouterr().err == "counting: no luck: take another seed\n"


def test_importing_benchmarks_loads_no_torch() -> None:
    code = "import sys, benchmarks, benchmarks.__main__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
