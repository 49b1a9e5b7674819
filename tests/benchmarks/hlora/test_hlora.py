"""The comparison of strategies: whole on a tiny base, and piece by piece on records that need no run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from benchmarks.command_line import UsageError, run_command
from benchmarks.hlora.arms import ARMS, BASELINE
from benchmarks.hlora.footprint import footprint_table, measure_footprints
from benchmarks.hlora.plot import plot_grid
from benchmarks.hlora.report import Setting, comparisons, finished, gain, measurements, tables
from benchmarks.hlora.settings import PRESETS, cells_of, read_settings
from benchmarks.hlora.workloads import WORKLOADS
from benchmarks.leads import mean_lead


def record(arm: str, seed: int = 0, score: float = 0.6, alpha: float | None = 1.0, **fields: object) -> dict:
    """A finished cell whose rank-2 devices hold a tenth less than the others."""
    start = {
        "round": 0,
        "accuracy": 0.5,
        "loss": 0.7,
        "bytes_up": 0,
        "bytes_down": 0,
        "unseen": {"2": 0.0},
        "merge_bias": 0.0,
    }
    end = {
        "round": 9,
        "accuracy": score,
        "loss": 0.6,
        "bytes_up": 7,
        "bytes_down": 9,
        "unseen": {"2": 0.25},
        "merge_bias": 0.0,
    }
    ranks = {str(rank): {"accuracy": score - (0.1 if rank == 2 else 0.0), "loss": 0.6} for rank in (2, 4, 8, 16)}
    cell = {"task": "sst2", "alpha": alpha, "participation": 0.4, "seed": seed, "arm": arm}
    scores = {"curve": [start, end], "ranks": ranks, "server": {"accuracy": score}, "update_bytes": 400}
    return {**cell, **scores} | fields


def settings(**flags: str):
    given = {"preset": "full", "seed": "0", "model": "m", "workers": "1"} | flags
    return read_settings(**dict.fromkeys(("data", "cells", "runs", "out", "plot")) | given)


def test_every_preset_names_arms_and_tasks_that_there_are():
    for preset in PRESETS.values():
        assert set(preset.arms) <= set(ARMS)
        assert set(preset.tasks) <= set(WORKLOADS)
        assert BASELINE in preset.arms


def test_a_grid_goes_seed_by_seed_and_pools_data_once():
    preset = PRESETS["full"]
    cells = list(cells_of(preset, (3, 4)))
    assert len(set(cells)) == len(cells) == 2 * len(preset.tasks) * 2 * (3 * (len(preset.arms) - 1) + 1)
    repetitions = [key for key, _ in groupby(cells, lambda cell: (cell.participation, cell.seed))]
    assert repetitions == [(share, seed) for share in preset.participations for seed in (3, 4)]
    assert {cell.alpha for cell in cells if ARMS[cell.arm].pooled} == {None}


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"workers": "0"}, "workers"),
        ({"runs": "-1"}, "runs"),
        ({"model": None}, "model: expected"),
        ({"data": "/no/such/folder"}, "leave it out"),
    ],
)
def test_a_wrong_flag_is_told(flags, fault):
    with pytest.raises(UsageError, match=fault):
        settings(**flags)


def test_pooled_data_stands_beside_every_mixture_and_failures_beside_none():
    records = [record("delta", alpha=a) for a in (0.1, 1.0)] + [record("centralised, rank 16", alpha=None)]
    records.append(record("hlora") | {"failure": "the loss became nan"})
    found = finished(records)
    assert list(found) == [Setting("sst2", 0.4, 0.1), Setting("sst2", 0.4, 1.0)]
    assert all(set(arms) == {"delta", "centralised, rank 16"} for arms in found.values())
    assert "task sst2, alpha 1.0, participation 0.4, seed 0, arm hlora: the loss became nan" in tables(records)


def test_a_devices_gain_is_counted_from_the_untrained_model():
    assert gain(record("delta", score=0.8), 16) == pytest.approx(0.3)
    assert gain(record("delta", score=0.8), 2) == pytest.approx(0.2)


def test_a_table_says_what_share_of_the_highest_ranks_gain_the_lowest_has():
    line = next(line for line in tables([record("delta", score=0.75)]).splitlines() if line.startswith("delta"))
    assert line.split()[1:9] == ["1", "72.5", "65.0", "75.0", "75.0", "75.0", "75.0", "60"]


def test_arms_are_compared_on_the_seeds_that_both_have():
    records = [record("delta", seed, 0.6 + 0.01 * seed) for seed in range(5)]
    records += [record("hlora", seed, 0.55 + 0.01 * seed) for seed in range(1, 4)]
    found = comparisons(records)["hlora"]
    assert found.difference == pytest.approx(0.05)
    assert found.low == pytest.approx(0.05)


def test_a_seed_counts_once_however_many_columns_it_has():
    columns = {10.0: 0.02, 1.0: 0.04, 0.1: 0.0}
    records = [record("delta", seed, 0.6, alpha) for seed in (0, 1) for alpha in columns]
    records += [record("hlora", seed, 0.6 - (1 + seed) * lead, a) for seed in (0, 1) for a, lead in columns.items()]
    found = comparisons(records)["hlora"]
    expected = mean_lead(np.array([0.02, 0.04]))
    assert (found.difference, found.low) == pytest.approx((expected.difference, expected.low))


def test_a_lower_loss_is_told_as_being_ahead():
    worse = record("hlora")
    worse["ranks"] = {rank: {**scores, "loss": scores["loss"] + 0.25} for rank, scores in worse["ranks"].items()}
    lines = tables([record("delta"), record("delta", 1), worse, worse | {"seed": 1}]).splitlines()
    assert "+0.2500" in lines[-1]
    assert lines[-1].startswith("hlora")


def test_a_strategy_that_is_surely_better_is_counted_and_one_that_may_be_is_not():
    rng = np.random.default_rng(0)
    records = [record("delta", seed, 0.6 + rng.normal(0, 0.01)) for seed in range(8)]
    records += [record("hlora", seed, 0.7 + rng.normal(0, 0.01)) for seed in range(8)]
    records += [record("raflora", seed, 0.6 + rng.normal(0, 0.01)) for seed in range(8)]
    records += [record("delta, all at rank 16", seed, 0.9) for seed in range(8)]
    assert measurements(records) == {"strategies_ahead": 1}


def test_coded_updates_are_measured_against_plain_ones():
    records = [record("delta", seed, 0.6) for seed in range(3)]
    records += [record("delta, int8", seed, 0.58, update_bytes=104) for seed in range(3)]
    assert measurements(records) == pytest.approx({"int8_points_lost": 2.0, "int8_bytes": 0.26})


def test_the_figure_is_drawn_from_what_there_is(tmp_path):
    plot_grid([record("delta"), record("hlora", alpha=10.0)], tmp_path / "hlora.png")
    assert (tmp_path / "hlora.png").stat().st_size > 10_000


def test_too_few_rows_for_the_devices_are_told(films, tiny_llama, capsys):
    lines = (films / "sst2" / "train.jsonl").read_text().splitlines(keepends=True)
    (films / "sst2" / "train.jsonl").write_text("".join(lines[:56]))  # 32 of them are held out
    assert run_command(["hlora", "--preset=tiny", f"--data={films}", f"--model={tiny_llama}"]) == 1
    assert "expected at least 32 rows, 8 for each client, got 24" in capsys.readouterr().err


def test_a_grid_that_was_killed_is_finished_and_not_run_again(films, tiny_llama, tmp_path, capsys):
    stored, out = tmp_path / "cells.jsonl", tmp_path / "out.json"
    command = ["hlora", "--preset=tiny", f"--data={films}", f"--model={tiny_llama}", f"--cells={stored}"]
    assert run_command([*command, f"--out={out}"]) in (0, 1)
    whole = stored.read_bytes().splitlines(keepends=True)
    assert len(whole) == len(PRESETS["tiny"].arms)
    stored.write_bytes(b"".join(whole[:-1]) + whole[-1][:50])
    capsys.readouterr()
    assert run_command([*command, "--runs=0"]) in (0, 1)
    assert f"{len(whole) - 1} of the grid's {len(whole)} runs" in capsys.readouterr().out
    assert run_command(command) in (0, 1)
    assert f"{len(whole)} of the grid's {len(whole)} runs" in capsys.readouterr().out
    again = json.loads(stored.read_bytes().splitlines()[-1])
    assert {**again, "cpu_s": 0} == {**json.loads(whole[-1]), "cpu_s": 0}
    result = json.loads(out.read_text())
    runs = {row["arm"]: row for row in result["rows"] if row["kind"] == "run"}
    assert list(runs["delta"]["ranks"]) == ["2", "4", "8", "16"]
    assert runs["delta"]["curve"][-1]["merge_bias"] < 1e-9 < runs["hlora"]["curve"][-1]["merge_bias"]
    assert runs["delta, int8"]["update_bytes"] < 0.35 * runs["delta"]["update_bytes"]


@pytest.mark.slow
@pytest.mark.timeout(400)  # four processes that load torch
def test_a_higher_rank_costs_its_device_more(tiny_llama):
    found = measure_footprints(str(tiny_llama), WORKLOADS["sst2"], steps=3, repeats=1)
    assert [each.rank for each in found] == [2, 4, 8, 16]
    assert [each.update_bytes for each in found] == sorted({each.update_bytes for each in found})
    assert all(each.step_s > 0 and 0 <= each.grown_bytes < each.peak_bytes for each in found)
    assert "rank 16" in footprint_table(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_grid_of_two_processes_goes_on_after_kill_9_and_ends_in_what_one_process_stores(films, tiny_llama, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    command = ["hlora", "--preset=tiny", f"--data={films}", f"--model={tiny_llama}"]
    killed = subprocess.Popen([sys.executable, "-m", "benchmarks", *command, f"--cells={two}", "--workers=2"])
    while not two.exists() or not two.read_bytes():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.kill()
    killed.wait()
    stored = len(two.read_bytes().splitlines())
    assert stored < len(PRESETS["tiny"].arms)
    assert run_command([*command, f"--cells={two}", "--workers=2"]) in (0, 1)
    assert run_command([*command, f"--cells={one}"]) in (0, 1)
    assert by_arm(two) == by_arm(one)


def by_arm(cells: Path) -> dict[str, dict]:
    """What is stored, but for the seconds it took."""
    records = [json.loads(line) for line in cells.read_bytes().splitlines()]
    assert len({record["arm"] for record in records}) == len(records)
    return {record["arm"]: {**record, "cpu_s": 0} for record in records}
