import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quickstart.evaluation import Score
from benchmarks.quickstart.outcome import DeviceOutcome, SeedOutcome
from benchmarks.quickstart.report import comparisons, measurements, print_outcomes, rows
from benchmarks.quickstart.settings import DEVICES
from benchmarks.quickstart.versions import LayerError
from benchmarks.results import Result, judge

NAMES = ("one", "two", "three", "four")


def search_score(mean: float, seed: int = 0) -> Score:
    ranks = np.clip(np.random.default_rng(seed).normal(mean, 0.2, 300), 0.01, 1.0)
    return Score(metrics={"mrr": float(ranks.mean()), "recall@10": 0.8}, by_query=ranks)


def label_score(value: float) -> Score:
    return Score(metrics={"accuracy": value}, by_query=np.zeros(0))


def outcome(score, seed: int = 0) -> SeedOutcome:  # type: ignore[no-untyped-def]
    return SeedOutcome(
        seed=seed,
        seconds={"federated": 10.0, "all": 20.0},
        untrained={"TF-IDF": score(0.40), "zero-shot": score(0.45)},
        rounds={1: score(0.5), 2: score(0.6)},
        pooled=score(0.62),
        devices=[
            DeviceOutcome(
                name=name,
                device=device,
                num_examples=256,
                received=1000,
                sent=2000,
                alone=score(0.5),
                own_rank=score(0.59),
            )
            for name, device in zip(NAMES, DEVICES, strict=True)
        ],
        layers=[LayerError(module="encoder.layer.0.attention.self.query", merge=1e-16, handout={2: 0.5, 16: 0.1})],
    )


def test_the_global_adapter_is_compared_with_every_rival() -> None:
    found = comparisons([outcome(search_score)])
    assert list(found) == ["TF-IDF", "zero-shot", *(f"{name} alone" for name in NAMES)]
    assert found["zero-shot"].difference == pytest.approx(0.15, abs=0.02)


def test_scores_of_several_seeds_are_averaged_by_query() -> None:
    one, other = outcome(search_score), outcome(lambda mean: search_score(mean, seed=1))
    ours = (one.federated.by_query + other.federated.by_query) / 2
    theirs = (one.rivals["TF-IDF"].by_query + other.rivals["TF-IDF"].by_query) / 2
    assert comparisons([one, other])["TF-IDF"].difference == pytest.approx((ours - theirs).mean())


def test_the_hardest_of_the_devices_alone_decides_the_goal() -> None:
    found = outcome(search_score)
    strong = DeviceOutcome(**vars(found.devices[2]) | {"alone": found.federated})
    devices = [*found.devices[:2], strong, found.devices[3]]
    measured = measurements([SeedOutcome(**vars(found) | {"devices": devices})], seconds=100.0)
    assert measured["p_over_alone"] == 1.0
    assert measured["p_over_zero_shot"] < 0.01


def test_measurements_fit_the_goals() -> None:
    targets = judge("quickstart", measurements([outcome(search_score)], seconds=299.0))
    assert [target.met for target in targets] == [True] * 4
    assert "seconds" not in measurements([outcome(search_score), outcome(search_score, 1)], seconds=999.0)


def test_a_task_without_scores_by_query_sets_no_goals() -> None:
    assert measurements([outcome(label_score)], seconds=1.0) == {}


@pytest.mark.parametrize("score", [search_score, label_score])
@pytest.mark.parametrize("seeds", [1, 3])
def test_tables_name_every_model_and_fit_a_line(score, seeds: int, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    metric = "mrr" if score is search_score else "accuracy"
    print_outcomes([outcome(score, seed) for seed in range(seeds)], metric)
    shown = capsys.readouterr().out
    for name in ("zero-shot", "one alone, rank 2", "federated, round 2", "as four holds it, rank 16", "pooled", "α/√r"):
        assert name in shown
    assert ("±" in shown) == (seeds > 1)
    assert max(map(len, shown.splitlines())) <= 130


def test_rows_hold_everything_and_can_be_written(tmp_path: Path) -> None:
    found = list(rows([outcome(search_score)]))
    result = Result(name="quickstart", command="c", machine={}, seeds=[0], rows=found, targets=[])
    result.write(tmp_path / "out.json")
    kinds = [row["kind"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]]
    assert set(kinds) == {"time", "score", "device", "layer", "comparison"}
    assert kinds.count("score") == 2 + 4 + 2 + 4 + 1
    assert not any(isinstance(value, float) and math.isnan(value) for row in found for value in row.values())
