"""Devices as traces describe them: what they take for steps and bytes, and what a run does while they are away."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aggregator.config import RunConfig
from aggregator.store.journal import Journal
from benchmarks.simulation import Device, Fleet, SimulatedRun, read_devices, write_devices
from benchmarks.simulation.manifests import toy_manifest
from benchmarks.simulation.memory import Lane
from edge_client.trainers.numpy_trainer import NumpyTrainer
from protocol.assignment import LocalTraining

MANIFEST = toy_manifest(rank_max=4)
CONFIG = RunConfig(run="run", rounds=3, cohort_size=1, default_rank=2, deadline_s=None, poll_s=0.1)


def run(folder: Path, devices: Sequence[Device], config: RunConfig = CONFIG, **given: int) -> SimulatedRun:
    trainers = [NumpyTrainer(seed=number + 1, rank=2) for number in range(len(devices))]
    with SimulatedRun(folder, config, MANIFEST, trainers, devices=devices) as simulated:
        simulated.until_finished(**given)
    return simulated


def cohorts(folder: Path, rounds: int) -> list[set[int]]:
    """Whose updates each round merged."""
    journal = Journal(folder / "journal.db")
    try:
        uploads = [journal.uploads(number) for number in range(1, rounds + 1)]
    finally:
        journal.close()
    return [{int(row.client[-2:]) for row in rows if row.state == "merged"} for rows in uploads]


# --- a device ---------------------------------------------------------------------------------------------------------


def test_a_device_leaves_and_comes_back_in_every_period() -> None:
    device = Device(away=((0.0, 2.0), (5.0, 7.5)), period_s=10.0)
    present = {2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 7.5, 8.0, 8.5, 9.0, 9.5}
    there = [time / 2 for time in range(60) if device.away_until(time / 2) is None]
    assert there == [time / 2 for time in range(60) if time / 2 % 10 in present]
    assert device.away_until(15.5) == 17.5
    assert [device.leaves_at(time) for time in (1.0, 2.0, 5.0, 19.0)] == [5.0, 5.0, 10.0, 20.0]
    assert Device().leaves_at(0.0) is None
    assert Device(away=((1.0, 2.0),)).leaves_at(3.0) is None


@pytest.mark.parametrize("period_s", [0.1, 7.3, 86400.0])
def test_time_never_stands_still_between_leaving_and_coming_back(period_s: float) -> None:
    (device,) = Fleet(there_s=period_s / 5, away_s=period_s / 5, period_s=period_s).draw(1, seed=3)
    now = 0.0
    for _ in range(300):
        back, leaves = device.away_until(now), device.leaves_at(now)
        later = back if back is not None else leaves
        assert later is not None
        assert later > now
        assert (device.away_until(later) is None) is (back is not None)
        now = later


def test_all_that_is_wrong_with_a_device_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"step_s.*up_bytes_per_s.*period_s.*away"):
        Device(step_s=-1.0, up_bytes_per_s=0.0, period_s=math.nan, away=((2.0, 1.0),))
    with pytest.raises(ValueError, match="within the period"):
        Device(away=((2.0, 10.0),), period_s=10.0)


# --- many of them -----------------------------------------------------------------------------------------------------


def test_speeds_of_a_fleet_have_their_median_and_nine_in_ten_lie_within_a_factor_of_ten() -> None:
    drawn = Fleet(step_s=2.0, up_bytes_per_s=1e6, down_bytes_per_s=4e6).draw(2000, seed=0)
    for median, values in (
        (2.0, [device.step_s for device in drawn]),
        (1e6, [device.up_bytes_per_s for device in drawn]),
    ):
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        assert middle == pytest.approx(median, rel=0.1)
        assert high / low == pytest.approx(10, rel=0.2)
    assert all(device.down_bytes_per_s == pytest.approx(4 * device.up_bytes_per_s) for device in drawn)


def test_devices_of_a_fleet_are_away_for_their_share_of_the_time() -> None:
    drawn = Fleet(there_s=300.0, away_s=100.0).draw(50, seed=1)
    away = np.mean([sum(back - left for left, back in device.away) / device.period_s for device in drawn])
    assert away == pytest.approx(0.25, abs=0.02)
    many = Fleet(there_s=300.0, away_s=100.0, period_s=1000.0).draw(1000, seed=1)
    for time in (0.0, 500.0, 1500.0):
        assert np.mean([device.away_until(time) is not None for device in many]) == pytest.approx(0.25, abs=0.05)


def test_a_fleet_is_the_same_for_the_same_seed_however_many_are_drawn() -> None:
    fleet = Fleet(there_s=3600.0)
    assert fleet.draw(3, seed=1) == fleet.draw(9, seed=1)[:3]
    assert fleet.draw(3, seed=1) != fleet.draw(3, seed=2)


def test_a_trace_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    drawn = [Device(), *Fleet(there_s=3600.0, up_bytes_per_s=1e5).draw(3, seed=0)]
    write_devices(drawn, tmp_path / "trace.json")
    assert read_devices(tmp_path / "trace.json") == drawn


@pytest.mark.parametrize(
    "text", ["{", "{}", "[1]", '[{"speed": 1}]', '[{"step_s": "fast"}]', '[{"away": [1]}]', '[{"step_s": -1}]']
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(ValueError, match=r"trace\.json|Expecting"):
        read_devices(tmp_path / "trace.json")


def test_infinite_speeds_are_not_written(tmp_path: Path) -> None:
    write_devices([Device(step_s=1.0)], tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text()) == [{"assignment_s": 0.0, "step_s": 1.0, "away": []}]


# --- a run ------------------------------------------------------------------------------------------------------------


def test_training_takes_the_time_of_its_steps(memory_folder: Path) -> None:
    config = replace(CONFIG, local=LocalTraining(max_steps=4))
    assert 30.0 <= run(memory_folder, [Device(step_s=2.5)], config).clock() < 31.0


def test_transfers_take_the_time_of_the_bytes_that_were_carried(memory_folder: Path) -> None:
    for name, device in (("up", Device(up_bytes_per_s=1000.0)), ("down", Device(down_bytes_per_s=500.0))):
        simulated = run(memory_folder / name, [device])
        sent, received = simulated.traffic.sent, simulated.traffic.received
        least_s = sent / device.up_bytes_per_s + received / device.down_bytes_per_s
        assert least_s - 0.5 <= simulated.clock() < least_s + 1.0, name  # nobody waits for the last farewell


def test_a_device_that_leaves_in_the_midst_of_training_goes_on_once_it_is_back(memory_folder: Path) -> None:
    for name, device in (
        ("there", Device(assignment_s=10.0)),
        ("away", Device(assignment_s=10.0, away=((4.0, 100.0),))),
    ):
        (memory_folder / name).mkdir()
        simulated = run(memory_folder / name, [device], replace(CONFIG, rounds=1))
        assert simulated.drivers[0].finished is not None
        assert (10.0 if name == "there" else 106.0) <= simulated.clock() < (11.0 if name == "there" else 110.0)
        assert cohorts(memory_folder / name, 1) == [{0}]


def test_what_is_under_way_as_its_device_leaves_is_lost_and_sent_again(memory_folder: Path) -> None:
    device = Device(up_bytes_per_s=200.0)
    (in_time,) = committed_at(memory_folder / "there", device)
    leaves = in_time - 0.1
    (late,) = committed_at(memory_folder / "away", replace(device, away=((leaves, leaves + 50.0),)))
    assert late > leaves + 50.0


def committed_at(folder: Path, device: Device) -> list[float]:
    """When each version of one round by one device was there, without version 0."""
    times: list[float] = []
    folder.mkdir()
    trainers = [NumpyTrainer(seed=1, rank=2)]
    with SimulatedRun(folder, replace(CONFIG, rounds=1), MANIFEST, trainers, devices=[device]) as simulated:
        simulated.until_finished(lambda version: times.append(simulated.clock()))
    return times[1:]


def test_a_link_carries_one_message_after_the_other() -> None:
    lane = Lane(bytes_per_s=10.0)
    assert [lane.arrival(0.0, 50), lane.arrival(1.0, 20), lane.arrival(30.0, 10)] == [5.0, 7.0, 31.0]


LEAVES = Device(assignment_s=10.0, away=((5.0, 1000.0),))
STAYS = Device(assignment_s=10.0)


@pytest.mark.parametrize(
    ("settings", "at_most_s"),
    [
        ({"over_selection": 2.0}, 60.0),
        ({"deadline_s": 60.0, "quorum": 2}, 200.0),
        ({"deadline_s": 60.0}, 200.0),
        ({}, math.inf),
    ],
    ids=["over-selection", "quorum", "deadline", "waiting"],
)
def test_rounds_survive_devices_that_vanish(memory_folder: Path, settings: dict[str, float], at_most_s: float) -> None:
    config = replace(CONFIG, cohort_size=3, poll_s=5.0, **settings)  # type: ignore[arg-type]
    committed: list[float] = []
    trainers = [NumpyTrainer(seed=number + 1, rank=2) for number in range(6)]
    devices = [LEAVES, STAYS, LEAVES, STAYS, STAYS, STAYS]
    with SimulatedRun(memory_folder, config, MANIFEST, trainers, devices=devices) as simulated:
        simulated.until_finished(lambda version: committed.append(simulated.clock()))
    assert committed[-1] < at_most_s
    assert at_most_s < math.inf or committed[-1] > 1000.0, "there is nobody else to wait for"
    assert simulated.clock() > 1000.0, "all hold the final adapter in the end"


@pytest.mark.slow
def test_a_thousand_devices_of_which_ten_train_at_a_time_end_within_seconds(memory_folder: Path) -> None:
    devices = Fleet(step_s=0.1).draw(1000, seed=0)
    config = replace(CONFIG, cohort_size=10, over_selection=1.3, poll_s=20.0)
    simulated = run(memory_folder, devices, config, steps_max=15_000)
    assert all(driver.finished is not None for driver in simulated.drivers)
    assert [len(cohort) for cohort in cohorts(memory_folder, 3)] == [10, 10, 10]
