import json
import math
import platform
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.command_line import BENCHMARKS
from benchmarks.machine import describe_machine
from benchmarks.results import Result, Target, TargetsError, judge, load_goals


def result(rows: list[dict[str, object]]) -> Result:
    target = Target(what="it is fast", goal="< 300", got=1.0, met=True)
    return Result(name="n", command="c", machine={"cores": 2}, seeds=[0], rows=rows, targets=[target])


def test_json_has_the_fields_that_every_benchmark_shares() -> None:
    loaded = json.loads(result([{"mrr": 0.5}]).to_json())
    assert list(loaded) == ["name", "command", "machine", "seeds", "rows", "targets"]
    assert list(loaded["targets"][0]) == ["what", "goal", "got", "met"]


def test_numbers_that_are_not_finite_become_null() -> None:
    assert json.loads(result([{"x": math.nan, "y": (1.0, math.inf)}]).to_json())["rows"] == [
        {"x": None, "y": [1.0, None]}
    ]


def test_writing_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    result([]).write(path)
    assert json.loads(path.read_text())["name"] == "n"
    assert list(tmp_path.iterdir()) == [path]


def test_every_benchmark_has_readable_goals() -> None:
    assert all(load_goals(name) for name in BENCHMARKS)


@pytest.mark.parametrize(("got", "met"), [(299.9, True), (300.0, False), (math.nan, False)])
def test_a_goal_is_met_or_not(got: float, met: bool) -> None:
    (target,) = judge("quickstart", {"seconds": got})
    assert (target.goal, target.met) == ("< 300", met)


def test_a_measurement_without_a_goal_is_refused() -> None:
    with pytest.raises(TargetsError, match="no goal for secnods"):
        judge("quickstart", {"secnods": 1.0})


def test_a_benchmark_without_goals_is_refused() -> None:
    with pytest.raises(TargetsError, match="'quickstrat'"):
        load_goals("quickstrat")


def test_an_entry_that_cannot_be_read_is_named() -> None:
    with pytest.raises(TargetsError, match=r"\[b\.k\]"):
        results._goal("b", "k", {"what": "x", "is": "~", "goal": 1})


def test_the_machine_is_described_without_its_name() -> None:
    machine = describe_machine(["numpy", "no-such-distribution"])
    assert machine["cores"]
    assert machine["packages"]
    assert platform.node() not in json.dumps(machine)
