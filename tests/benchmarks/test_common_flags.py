"""Every benchmark refuses the flags that all have in common in the same words."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.command_line import BENCHMARKS, Planned, UsageError


def planned(benchmark: str, **flags: object) -> Planned:
    """What a command line with these flags, and no others, would run."""
    return import_module(BENCHMARKS[benchmark]).plan(**flags)  # type: ignore[no-any-return]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("preset", "qiuck", "--preset: expected one of .*quick, full.*, got 'qiuck'"),
        ("seed", "2.5", "--seed: expected a whole number"),
        ("seed", "-1", "--seed: expected a whole number"),
        ("seed", True, "--seed: expected a whole number"),
        ("out", True, "--out: expected text, got nothing"),
        ("out", "no/such/folder/o.json", "--out: there is no folder"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(
    benchmark: str, flag: str, value: object, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        planned(benchmark, **{flag: value})


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_all_faults_are_told_together(benchmark: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)--preset.*--seed.*--out"):
        planned(benchmark, preset="x", seed="y", out="no/such/folder/o.json")


@pytest.mark.parametrize("benchmark", sorted(set(BENCHMARKS) - {"quickstart"}))  # which draws none
def test_a_figure_is_drawn_into_a_folder_that_there_is(benchmark: str) -> None:
    with pytest.raises(UsageError, match="--plot: there is no folder"):
        planned(benchmark, plot="no/such/folder/o.png")


@pytest.mark.parametrize("benchmark", sorted(set(BENCHMARKS) - {"quickstart"}))
def test_who_cannot_draw_is_told_before_hours_of_runs(
    benchmark: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.flags.can_plot", lambda: False)
    with pytest.raises(UsageError, match="--plot needs matplotlib: pip install"):
        planned(benchmark, plot=str(tmp_path / "figure.png"))


def test_flags_are_read_without_torch() -> None:
    """Help and mistakes come fast."""
    code = f"import sys, {', '.join(BENCHMARKS.values())}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
