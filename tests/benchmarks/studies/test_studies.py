"""What a study comes to: learning rates from validation scores, claims from paired test scores, and one whole run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks.command_line import run_command
from benchmarks.data.tasks import TASKS
from benchmarks.studies import fedpeft, fedpeptao, fedpetuning
from benchmarks.studies.claims import Claim, Verdict
from benchmarks.studies.design import Arm, Cell, Condition, Preset, Study
from benchmarks.studies.plan import chosen_rates, diverged, study_cells, tuning_cells
from benchmarks.studies.plot import plot_study
from benchmarks.studies.report import tables
from edge_client.methods import read_method

PRESET = Preset(tasks=("sst2",), seeds=2, rounds=3, batch_size=8, train_rows=100, validation_rows=10, test_rows=10)
TOY = Study(
    name="toy",
    question="Which?",
    arms={"a": Arm(method="lora", learning_rates=(0.1, 0.2)), "b": Arm(method="head", learning_rates=(0.3,))},
    conditions={"mild": Condition(), "harsh": Condition(alpha=0.1)},
    presets={"quick": PRESET},
    claims=(Claim(what="a beats b", ahead=[("a", "mild")], behind=[("b", "mild")]),),
)


def record(cell: Cell, validation: float = 0.5, test: float = 0.5) -> dict:
    point = {"round": 1, "accuracy": validation, "bytes_up": 10, "bytes_down": 20, "virtual_s": 1.0}
    best = {"round": 1, "validation": validation, "test": {"accuracy": test}}
    return {
        **asdict(cell),
        "curve": [{**point, "round": 0, "bytes_up": 0, "bytes_down": 0}, point],
        "best": best,
        "last": best,
        "tuned": 100 if cell.arm == "a" else 10,
        "bytes_up": 10,
        "bytes_down": 20,
    }


def cell(arm: str, rate: float, condition: str = "mild", seed: int = 0) -> Cell:
    return Cell(task="sst2", arm=arm, condition=condition, learning_rate=rate, seed=seed)


def test_a_rate_is_chosen_by_validation_whatever_the_test_scores_say():
    records = [record(cell("a", 0.1), validation=0.8, test=0.1), record(cell("a", 0.2), validation=0.7, test=0.9)]
    assert chosen_rates(TOY, PRESET, records, 0) == {("sst2", "a", "mild"): 0.1}


def test_no_rate_is_chosen_before_all_were_tried_and_none_that_diverged():
    assert chosen_rates(TOY, PRESET, [record(cell("a", 0.1))], 0) == {}
    diverged = {**asdict(cell("a", 0.1)), "failure": "the loss became nan"}
    assert chosen_rates(TOY, PRESET, [diverged, record(cell("a", 0.2))], 0) == {("sst2", "a", "mild"): 0.2}
    assert chosen_rates(TOY, PRESET, [record(cell("a", 0.1), seed := 0), record(cell("a", 0.2, seed=1))], seed) == {}


def test_cells_are_tuned_under_the_first_condition_and_run_under_all():
    assert {c.condition for c in tuning_cells(TOY, PRESET, 0)} == {"mild"}
    assert [(c.arm, c.learning_rate) for c in tuning_cells(TOY, PRESET, 0)] == [("a", 0.1), ("a", 0.2), ("b", 0.3)]
    cells = list(study_cells(TOY, PRESET, {("sst2", "a", "mild"): 0.2}, (0, 1)))
    assert cells == [cell("a", 0.2, condition, seed) for seed in (0, 1) for condition in ("mild", "harsh")]


def test_a_condition_may_have_rates_of_its_own():
    noisy = replace(TOY, conditions={**TOY.conditions, "noisy": Condition(own_rates=True, arms=("a",))})
    assert {(c.arm, c.condition) for c in tuning_cells(noisy, PRESET, 0)} == {
        ("a", "mild"),
        ("b", "mild"),
        ("a", "noisy"),
    }
    tried = [
        record(cell("a", rate, condition), value)
        for condition, rate, value in (("mild", 0.1, 0.9), ("mild", 0.2, 0.8), ("noisy", 0.1, 0.6), ("noisy", 0.2, 0.7))
    ]
    rates = chosen_rates(noisy, PRESET, tried, 0)
    assert rates == {("sst2", "a", "mild"): 0.1, ("sst2", "a", "noisy"): 0.2}
    found = {(c.condition, c.learning_rate) for c in study_cells(noisy, PRESET, rates, (0,))}
    assert found == {("mild", 0.1), ("harsh", 0.1), ("noisy", 0.2)}


def test_an_arm_that_diverges_at_every_rate_is_named():
    failed = [{**asdict(cell("a", rate)), "failure": "the loss became nan"} for rate in (0.1, 0.2)]
    assert diverged(TOY, PRESET, failed[:1], 0) == []
    assert diverged(TOY, PRESET, failed, 0) == [("sst2", "a", "mild")]
    assert diverged(TOY, PRESET, [failed[0], record(cell("a", 0.2))], 0) == []


@pytest.mark.parametrize(
    ("a", "b", "margin", "verdict"),
    [
        (0.8, 0.7, 0.0, Verdict.HOLDS),
        (0.7, 0.8, 0.0, Verdict.FAILS),
        (0.8, 0.7, 0.2, Verdict.FAILS),
        (0.7, 0.75, -0.1, Verdict.HOLDS),
        (0.75, 0.75, 0.0, Verdict.OPEN),
    ],
)
def test_a_claim_holds_fails_or_stays_open(a, b, margin, verdict):
    rng, claim = np.random.default_rng(0), replace(TOY.claims[0], margin=margin)
    noise = rng.normal(0, 0.005, 8)
    records = [record(cell("a", 0.1, seed=seed), test=a + noise[seed]) for seed in range(8)]
    records += [record(cell("b", 0.3, seed=seed), test=b - noise[seed]) for seed in range(8)]
    found = claim.check(records)
    assert (found.verdict, found.pairs) == (verdict, 8)


def test_few_seeds_that_agree_by_chance_settle_nothing():
    """Of arms that are alike, three seeds favour the same one in a quarter of all cases."""
    rng, settled = np.random.default_rng(0), 0
    for _ in range(400):
        records = [
            record(cell(arm, 0.1, seed=seed), test=0.7 + rng.normal(0, 0.02)) for arm in "ab" for seed in range(3)
        ]
        settled += TOY.claims[0].check(records).verdict is not Verdict.OPEN
    assert settled / 400 == pytest.approx(0.05, abs=0.03)


def test_a_claim_of_differences_adds_and_subtracts_scores():
    sides = {("a", "mild"): 0.9, ("a", "harsh"): 0.5, ("b", "mild"): 0.8, ("b", "harsh"): 0.7}
    records = [
        record(cell(arm, 0.1, condition, seed), test=score)
        for (arm, condition), score in sides.items()
        for seed in range(3)
    ]
    loses_more = Claim(
        what="a loses more", ahead=[("a", "mild"), ("b", "harsh")], behind=[("a", "harsh"), ("b", "mild")]
    )
    found = loses_more.check(records)
    assert found.verdict is Verdict.HOLDS
    assert found.found.difference == pytest.approx(0.3)


def test_a_claim_is_about_pairs_and_one_pair_is_none():
    records = [record(cell("a", 0.1)), record(cell("b", 0.3)), record(cell("b", 0.3, seed=1))]
    assert TOY.claims[0].check(records).verdict is Verdict.NOT_RUN


def test_tables_and_figure_are_made_of_what_there_is(tmp_path):
    records = [record(cell("a", 0.1, seed=seed), test=0.6 + 0.1 * seed) for seed in (0, 1)]
    lines = tables(TOY, PRESET, records).splitlines()
    assert lines[1].split() == ["a", "65.0", "±", "7.1", "100", "-", "30", "B", "1", "0.1"]
    assert "a beats b" in lines[-1]
    assert "not run" in lines[-1]
    plot_study(TOY, PRESET, records, tmp_path / "toy.png")
    assert (tmp_path / "toy.png").stat().st_size > 10_000


def test_a_mean_over_fewer_seeds_than_planned_says_so():
    diverged = {**asdict(cell("a", 0.1, seed=1)), "failure": "the loss became nan"}
    line = tables(TOY, PRESET, [record(cell("a", 0.1), test=0.6), diverged]).splitlines()[1]
    assert "60.0 (1 of 2)" in line


@pytest.mark.parametrize("study", [fedpetuning.STUDY, fedpeft.STUDY, fedpeptao.STUDY], ids=lambda study: study.name)
def test_a_study_names_only_what_there_is(study):
    for preset in study.presets.values():
        assert set(preset.tasks) <= set(TASKS)
        assert set(preset.arms or ()) <= set(study.arms)
        assert set(preset.conditions or ()) <= set(study.conditions)
    for arm in study.arms.values():
        assert read_method(arm.method, arm.options).name == arm.method
    for claim in study.claims:
        assert len(claim.ahead) == len(claim.behind)
        for arm, condition in claim.sides:
            assert arm in (study.conditions[condition].arms or study.arms)


def test_a_study_tunes_runs_reports_and_does_nothing_twice(films, tiny_bert, tmp_path, capsys):
    stored, out = tmp_path / "cells.jsonl", tmp_path / "out.json"
    command = ["fedpetuning", "--preset=tiny", f"--data={films}", f"--model={tiny_bert}", f"--cells={stored}"]
    assert run_command([*command, "--runs=1"]) == 1
    assert "orderings that the runs do not check" in capsys.readouterr().out
    assert len(stored.read_text().splitlines()) == 1
    assert run_command([*command, f"--out={out}", f"--plot={tmp_path / 'study.png'}"]) == 0
    said = capsys.readouterr().out
    assert "12 of 12 runs" in said
    count = len(stored.read_text().splitlines())
    assert count == 4 + 12 - 2  # of the study's runs two are those that chose the rates
    assert run_command([*command, f"--out={out}"]) == 0
    assert len(stored.read_text().splitlines()) == count
    rows = json.loads(out.read_text())["rows"]
    runs = [row for row in rows if row["kind"] == "run"]
    assert len(runs) == 12
    assert {run["condition"] for run in runs} == {"alpha 1", "centralised", "alone"}
    federated = [run for run in runs if run["condition"] == "alpha 1"]
    assert all(run["best"]["validation"] == max(p["accuracy"] for p in run["curve"]) for run in federated)
    assert {run["label_distance"] for run in runs if run["condition"] == "centralised"} == {0.0}
    checked = [row["what"] for row in rows if row["kind"] == "claim" and row["verdict"] != "not run"]
    assert checked == ["lora is ahead of prefix"]


def test_a_study_on_pictures_runs_whole(pictures, tiny_vit, tmp_path):
    out = tmp_path / "out.json"
    command = ["fedpeft", "--preset=tiny", f"--data={pictures}", f"--model={tiny_vit}", f"--out={out}"]
    assert run_command([*command, f"--plot={tmp_path / 'study.png'}"]) == 0
    runs = [row for row in json.loads(out.read_text())["rows"] if row["kind"] == "run"]
    assert {run["arm"] for run in runs} == {"prompt", "head"}
    assert all(0.0 <= run["best"]["test"]["accuracy"] <= 1.0 for run in runs)
