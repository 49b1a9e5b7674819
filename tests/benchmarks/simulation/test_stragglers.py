"""Devices of very different speeds on a virtual clock: what buffers are for."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from aggregator.config import Mode, RunConfig
from benchmarks.simulation import Device, SimulatedRun
from benchmarks.simulation.committed import Committed
from benchmarks.simulation.manifests import toy_manifest
from edge_client.trainers.numpy_trainer import NumpyTrainer

DEVICES = [Device(assignment_s=seconds) for seconds in (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 20.0, 40.0)]
"""Six devices of about one speed, and two that are many times slower."""
MANIFEST = toy_manifest(rank_max=8, dense=0)
TARGET = 0.25
"""Relative distance from the mean of what all devices want, the slow ones included."""


def fleet() -> list[NumpyTrainer]:
    return [NumpyTrainer(seed=1 + i, rank=(2, 4, 8)[i % 3], rate=0.05) for i in range(len(DEVICES))]


def wanted() -> Mapping[str, NDArray[np.float64]]:
    each = [{m.name: np.matmul(*trainer.target(m)) for m in MANIFEST.low_rank} for trainer in fleet()]
    return {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}


def distance(version: Committed) -> float:
    ideal = wanted()
    missed = [version.offset.low_rank[name].svd.dense() - value for name, value in ideal.items()]
    return float(np.linalg.norm(missed) / np.linalg.norm(list(ideal.values())))


def curve(folder: Path, mode: Mode, rounds: int) -> list[tuple[float, float]]:
    """Virtual seconds and distance of every version."""
    config = RunConfig(run="run", mode=mode, rounds=rounds, cohort_size=4, default_rank=2, deadline_s=None, poll_s=1.0)
    found: list[tuple[float, float]] = []
    with SimulatedRun(folder, config, MANIFEST, fleet(), devices=DEVICES) as run:
        run.until_finished(lambda version: found.append((run.clock(), distance(version))))
    return found


def seconds_to_target(curve: list[tuple[float, float]]) -> float:
    return next(seconds for seconds, missed in curve if missed <= TARGET)


def test_buffers_reach_the_target_in_a_fraction_of_the_time_that_rounds_need(tmp_path: Path) -> None:
    rounds, buffers = (curve(tmp_path / mode, mode, rounds=6) for mode in (Mode.SYNC, Mode.ASYNC))
    assert seconds_to_target(buffers) < 0.25 * seconds_to_target(rounds)
    assert rounds[-1][1] < TARGET, "both get there"
    assert buffers == curve(tmp_path / "again", Mode.ASYNC, rounds=6), "and a simulation can be repeated"


def test_slow_devices_take_part_in_buffers_too(tmp_path: Path) -> None:
    config = RunConfig(
        run="run", mode=Mode.ASYNC, rounds=24, cohort_size=4, default_rank=2, deadline_s=None, staleness_max=30
    )
    with SimulatedRun(tmp_path, config, MANIFEST, fleet(), devices=DEVICES) as run:
        run.until_finished()
        journal = run.journal
        staleness: dict[int, set[int]] = {}
        for number in range(1, 25):
            for row in journal.uploads(number):
                given = journal.assignment(row.token)
                assert given is not None
                staleness.setdefault(int(row.client[-2:]), set()).add(number - given.round)
        assert {device for device, seen in staleness.items() if min(seen) == 0} >= {0, 1, 2, 3, 4, 5}
        assert min(staleness[6]) >= 5, "20 s are several versions"
        assert max(max(seen) for seen in staleness.values()) <= config.staleness_max


def test_a_device_that_is_always_too_slow_costs_nobody_anything(tmp_path: Path) -> None:
    config = RunConfig(
        run="run", mode=Mode.ASYNC, rounds=8, cohort_size=3, default_rank=2, deadline_s=None, staleness_max=2
    )
    with SimulatedRun(tmp_path, config, MANIFEST, fleet(), devices=DEVICES) as run:
        run.until_finished()  # no device fails: what is refused is dropped, and asked for anew
        uploads = [row for number in range(1, 9) for row in run.journal.uploads(number)]
    assert {int(row.client[-2:]) for row in uploads if row.state == "merged"} <= set(range(6))
    assert all(driver.error is None for driver in run.drivers)


@pytest.mark.parametrize("mode", list(Mode))
def test_time_is_what_devices_take(tmp_path: Path, mode: Mode) -> None:
    config = RunConfig(run="run", mode=mode, rounds=1, cohort_size=2, default_rank=2, poll_s=0.1)
    trainers = [NumpyTrainer(seed=1), NumpyTrainer(seed=2)]
    with SimulatedRun(
        tmp_path, config, MANIFEST, trainers, devices=[Device(assignment_s=3.0), Device(assignment_s=50.0)]
    ) as run:
        run.until_finished()
        assert 50.0 <= run.clock() < 55.0
