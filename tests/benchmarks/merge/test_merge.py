"""The merge benchmark on matrices of a toy's size: everyone gets the same answer, and every path is walked."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.command_line import run_command
from benchmarks.merge.cohorts import store_case
from benchmarks.merge.contenders import Contender, prepare
from benchmarks.merge.expected import nvflare_seconds, peft_seconds, svd_seconds
from benchmarks.merge.experiment import Cell, LayerTime, MemoryUse, run_case, run_svd
from benchmarks.merge.report import measurements
from benchmarks.merge.settings import PRESETS, Case, Problem

TINY = PRESETS["tiny"]


@pytest.mark.parametrize("problem", Problem)
def test_every_contender_finds_the_best_approximation_of_the_same_matrix(tmp_path: Path, problem: Problem) -> None:
    case = Case(shape=(60, 50), clients=4, problem=problem)
    taking_part, left_out = prepare(store_case(case, (2, 4, 8), 8, 0, tmp_path), 8, tmp_path)
    assert [one.name for one in taking_part] == list(Contender)
    assert not left_out
    found = [one.factors(one.run()) for one in taking_part if one.factors is not None]
    products = [left @ right for left, right in found]
    assert len(products) == len(Contender)
    for product in products[1:]:
        assert np.linalg.norm(product - products[0]) < 1e-4 * np.linalg.norm(products[0])


@pytest.mark.parametrize("case", TINY.cases, ids=str)
def test_a_case_is_measured_with_its_errors(case: Case) -> None:
    cells = run_case(case, TINY, 0, lambda text: None)
    assert [cell.contender for cell in cells] == list(Contender)
    ours = cells[0]
    assert ours.state_error is not None
    assert ours.state_error < 1e-12
    assert ours.floor_s is not None
    assert ours.floor_s > 0
    assert ours.error is not None
    assert all(ours.error < cell.error + 1e-6 for cell in cells if cell.error is not None)
    assert [len(cell.seconds) for cell in cells] == [TINY.repeats] * len(cells)


def test_a_decomposition_that_was_timed_before_is_added_to_each_sum() -> None:
    dense = run_case(TINY.cases[0], TINY, 0, lambda text: None, 1000.0)[2]
    assert dense.contender == Contender.DENSE
    assert 1000 < dense.median_s < 1010
    assert dense.error is None
    assert run_svd(TINY.shapes[0], TINY, 0).seconds < 10


def test_a_competitor_that_would_take_too_long_is_left_out_with_the_reason() -> None:
    said: list[str] = []
    cells = run_case(TINY.cases[0], replace(TINY, patience_s=0.0), 0, said.append)
    assert [cell.contender for cell in cells] == [Contender.OURS, Contender.DENSE]
    assert all("left out: it would take" in line for line in said)


def test_a_contender_whose_time_is_spent_does_not_run_again() -> None:
    cells = run_case(TINY.cases[0], replace(TINY, repeats=3, budget_s=0.0), 0, lambda text: None)
    assert [len(cell.seconds) for cell in cells] == [1] * len(cells)


def test_expected_operations_grow_with_what_is_done() -> None:
    square, tall = (4096, 4096), (14336, 4096)
    assert svd_seconds(square) < svd_seconds(tall) < peft_seconds(tall)
    assert svd_seconds(square) == peft_seconds(square)
    assert nvflare_seconds(square, 100) < nvflare_seconds(square, 1000) < nvflare_seconds(tall, 1000)
    assert nvflare_seconds(square, 20_000) > svd_seconds(square)


def cell(contender: str, seconds: float, *, clients: int = 10, error: float = 0.5) -> Cell:
    case = Case(shape=(4096, 4096), clients=clients, problem=Problem.ABSOLUTE)
    ours = contender == Contender.OURS
    floor, off = (seconds / 1.2, 1e-15) if ours else (None, None)
    return Cell(case=case, contender=contender, seconds=(seconds,), error=error, floor_s=floor, state_error=off)


def test_goals_are_about_the_worst_cells_that_anybody_feels() -> None:
    cells = [
        cell(Contender.OURS, 0.1),
        cell(Contender.NVFLARE, 0.08, error=0.4),
        cell(Contender.DENSE, 20.0),
        cell(Contender.OURS, 0.5, clients=100),
        cell(Contender.NVFLARE, 1.0, clients=100),
        cell(Contender.OURS, 0.04, clients=1),
        cell(Contender.NVFLARE, 0.01, clients=1),
    ]
    memory = [MemoryUse(clients=n, streamed_bytes=b, kept_bytes=10 * n) for n, b in ((10, 100), (1000, 120))]
    layers = [LayerTime(modules=(), clients=n, seconds=1.0, peak_bytes=n, update_bytes=1) for n in (100, 1000)]
    got = measurements(cells, memory, layers)
    assert got["speedup_absolute"] == pytest.approx(200)
    assert got["worst_ratio"] == pytest.approx(1.25)
    assert got["share_ahead"] == pytest.approx(0.5)
    assert got["worst_floor_ratio"] == pytest.approx(1.2)
    assert got["worst_excess"] == pytest.approx(0.1)
    assert got["memory_growth"] == pytest.approx(1.2)
    assert got["layer_anonymous_bytes"] == 1000


@pytest.mark.slow
def test_the_command_walks_every_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "merge.json", tmp_path / "merge.png"
    run_command(["merge", "--preset=tiny", f"--out={out}", f"--plot={plot}"])  # tiny matrices are nobody's goal
    told = json.loads(out.read_text())
    assert {row["kind"] for row in told["rows"]} == {"time", "memory", "layer"}
    assert plot.stat().st_size > 10_000
    assert set(tmp_path.iterdir()) == {out, plot}
    assert "2 linear modules" in capsys.readouterr().out


@pytest.mark.slow
def test_what_was_measured_outlives_a_result_that_cannot_be_written(tmp_path: Path) -> None:
    out, in_the_way = tmp_path / "merge.json", tmp_path / "merge.json.part"
    in_the_way.mkdir()
    with pytest.raises(IsADirectoryError):
        run_command(["merge", "--preset=tiny", f"--out={out}"])
    assert (tmp_path / "merge.json.measured").stat().st_size > 1000
    in_the_way.rmdir()
    run_command(["merge", "--preset=tiny", f"--out={out}"])
    assert list(tmp_path.iterdir()) == [out]
