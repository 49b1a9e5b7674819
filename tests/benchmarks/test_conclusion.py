"""How every benchmark ends."""

import json
from pathlib import Path

import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.conclusion import conclude


def end(out: Path | None, seconds: float, *, strict: bool) -> None:
    flags = {"preset": "quick", "data": None}
    conclude("quickstart", flags, [0], {"seconds": seconds}, [{"n": 1}], out, packages=("numpy",), strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_goals_met_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], strict: bool) -> None:
    end(tmp_path / "o.json", 299.0, strict=strict)
    assert capsys.readouterr().out.startswith("met     seconds")
    written = json.loads((tmp_path / "o.json").read_text())
    assert written["command"] == "python -m benchmarks quickstart --preset=quick"
    assert [target["met"] for target in written["targets"]] == [True]
    assert written["rows"] == [{"n": 1}]


def test_a_missed_goal_is_an_error_after_everything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="missed: seconds"):
        end(tmp_path / "o.json", 301.0, strict=True)
    assert json.loads((tmp_path / "o.json").read_text())["targets"][0]["met"] is False


def test_a_demo_may_miss_a_goal(capsys: pytest.CaptureFixture[str]) -> None:
    end(None, 301.0, strict=False)
    assert capsys.readouterr().out.startswith("MISSED")
