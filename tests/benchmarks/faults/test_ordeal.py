"""A small ordeal from start to end, with real processes: what the full benchmark does, in a minute or two."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.faults.audit import audit
from benchmarks.faults.evidence import AGGREGATOR, DEVICES
from benchmarks.faults.ordeal import Ordeal
from benchmarks.faults.plot import plot_run
from benchmarks.faults.report import measurements, print_findings, rows
from benchmarks.faults.settings import Preset
from benchmarks.results import judge


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_small_ordeal_keeps_every_promise_and_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    evidence = asyncio.run(Ordeal(Preset(runs=1, kills=4), 0, tmp_path / "run", said.append).run())
    found = audit(evidence, 0)
    assert (found.lost, found.twice, found.trainings.needless, found.versions_unequal) == (0, 0, 0, 0)
    assert found.resent_over_limit == 0
    assert found.kills == {AGGREGATOR: 4, DEVICES: 4}
    assert found.versions >= 2
    assert found.acknowledged >= 4 * found.versions
    targets = {target.what: target.met for target in judge("faults", measurements([found]))}
    assert sum(targets.values()) == len(targets) - 2  # all but the numbers of kills
    assert {row["kind"] for row in rows([found])} >= {"run", "kills", "time"}
    print_findings([found])
    assert "versions merged from" in capsys.readouterr().out
    plot_run(evidence, found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
