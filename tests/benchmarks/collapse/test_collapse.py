"""The no-op experiment against what can be worked out on paper."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.collapse import plan
from benchmarks.collapse.experiment import CASES, Course, run_all
from benchmarks.collapse.plot import plot_courses
from benchmarks.collapse.report import curves, measurements, rows, table
from benchmarks.collapse.settings import PARTICIPATIONS, PRESETS, RANKS, ROUNDS, read_settings
from benchmarks.command_line import Planned, run_command
from benchmarks.results import judge


@pytest.fixture(scope="module")
def courses() -> list[Course]:
    return list(run_all([(48, 40)], 0))


def test_hlora_shrinks_each_direction_by_the_share_that_holds_it(courses: list[Course]) -> None:
    """``σ_j(t) = σ_j(0)·P_j^t``, to bf16."""
    course = next(c for c in courses if (c.strategy, c.participation) == ("hlora", 1.0))
    held = np.array([sum(rank > j for rank in RANKS) / len(RANKS) for j in range(max(RANKS))])
    np.testing.assert_allclose(sorted(course.spectrum), sorted(held**ROUNDS), atol=0.01)
    assert set(held) == {1.0, 0.8, 0.5, 0.2}


def test_every_strategy_runs_at_every_participation(courses: list[Course]) -> None:
    assert {(c.strategy, c.participation) for c in courses} == {(n, p) for n in CASES for p in PARTICIPATIONS}
    assert all(len(c.norm) == len(c.change) == ROUNDS + 1 for c in courses)


def test_the_goals_are_met_by_what_comes_out(courses: list[Course]) -> None:
    assert all(target.met for target in judge("collapse", measurements(courses)))


def test_a_delta_that_forgets_and_a_false_claim_miss_the_goals(courses: list[Course]) -> None:
    bad = [replace(c, change=[1e-3]) if c.strategy == "delta" else c for c in courses]
    assert measurements(bad) == {"delta_change": 1e-3, "misdeclared": 1}
    calm = [replace(c, change=[0.0]) if c.strategy == "hlora" else c for c in courses]
    assert measurements(calm)["misdeclared"] == 1


def test_the_table_and_the_rows_tell_the_same(courses: list[Course]) -> None:
    share = curves(courses, 1.0)["hlora"][1]
    line = next(line for line in table(courses).splitlines() if line.startswith("hlora"))
    assert f"{100 * share:.1f}" in line.split()
    row = next(r for r in rows(courses) if (r["strategy"], r["participation"]) == ("hlora", 1.0))
    assert row["norm"][1] == pytest.approx(share, rel=1e-5)  # type: ignore[index]


def test_the_figure_can_be_drawn(courses: list[Course], tmp_path: Path) -> None:
    plot_courses(courses, tmp_path / "collapse.png")
    assert (tmp_path / "collapse.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_its_result_and_fails_when_a_goal_is_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, courses: list[Course], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.collapse.experiment.run_all", lambda shapes, seed: courses)
    out = tmp_path / "o.json"
    assert run_command(["collapse", f"--out={out}"]) == 0
    written = json.loads(out.read_text())
    assert written["command"] == "python -m benchmarks collapse --preset=quick --seed=0"
    assert [target["met"] for target in written["targets"]] == [True, True]
    bad = [replace(c, change=[1e-3]) if c.strategy == "delta" else c for c in courses]
    monkeypatch.setattr("benchmarks.collapse.experiment.run_all", lambda shapes, seed: bad)
    assert run_command(["collapse"]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_flags_become_settings(tmp_path: Path) -> None:
    settings = read_settings(preset="quick", seed="3", out=str(tmp_path / "o.json"), plot=None)
    assert settings.seeds == (3, 4, 5)
    assert settings.out == tmp_path / "o.json"
    assert isinstance(plan(preset="full"), Planned)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_can_hold_the_ranks(preset) -> None:  # type: ignore[no-untyped-def]
    assert all(min(shape) >= max(RANKS) for shape in preset.shapes)
