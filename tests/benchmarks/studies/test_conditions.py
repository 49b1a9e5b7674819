"""Conditions of slow devices that come and go: how they are stored, and what they make of a run's settings."""

import json

from benchmarks.simulation import Fleet
from benchmarks.studies.command import plain_condition
from benchmarks.studies.design import Arm, Cell, Condition, Preset
from benchmarks.studies.experiment import Work, run_config


def work(condition: Condition, **server: object) -> Work:
    return Work(
        cell=Cell(task="sst2", arm="a", condition="c", learning_rate=0.1, seed=3),
        arm=Arm(method="bitfit", learning_rates=(0.1,), server=server),
        condition=condition,
        preset=Preset(tasks=("sst2",), seeds=1, rounds=2, batch_size=4, train_rows=8, validation_rows=8, test_rows=8),
        source="data",
        model="model",
    )


def test_a_condition_decides_how_rounds_close_and_an_arm_goes_before() -> None:
    condition = Condition(server={"over_selection": 1.3, "deadline_s": 60.0, "server_learning_rate": 0.5})
    config = run_config(work(condition, server_learning_rate=0.1))
    assert (config.over_selection, config.deadline_s, config.server_learning_rate) == (1.3, 60.0, 0.1)
    assert run_config(work(Condition())).deadline_s is None


def test_conditions_are_stored_without_what_json_lacks_or_nobody_set() -> None:
    stored = plain_condition(Condition(fleet=Fleet(step_s=2.0)))
    assert stored["fleet"]["step_s"] == 2.0
    assert "there_s" not in stored["fleet"]
    json.dumps(stored, allow_nan=False)
    assert not {"fleet", "server"} & set(plain_condition(Condition()))
    assert plain_condition(Condition(fleet=Fleet())) != plain_condition(Condition())
