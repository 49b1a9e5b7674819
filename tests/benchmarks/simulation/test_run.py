"""Whole runs in memory: the same client, round machine, journal and merge as in the product."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from aggregator.config import RunConfig
from aggregator.merge import GlobalState
from benchmarks.simulation import Committed, SimulatedRun, StalledError
from benchmarks.simulation.manifests import toy_manifest
from edge_client.trainers.numpy_trainer import NumpyTrainer
from protocol.assignment import LocalTraining
from protocol.codecs import Codec

MANIFEST = toy_manifest(rank_max=8)
RANKS = (1, 2, 4, 8)


Start = Callable[..., SimulatedRun]


@pytest.fixture
def start(memory_folder: Path) -> Iterator[Start]:
    """Starts runs, each in a folder of its own, and ends them with the test."""
    with ExitStack() as stack:

        def started(*, rounds: int = 3, rate: float = 0.5, residual: bool = False, **settings: object) -> SimulatedRun:
            config = RunConfig(run="test", rounds=rounds, cohort_size=len(RANKS), **settings)  # type: ignore[arg-type]
            trainers = [
                NumpyTrainer(seed=index + 1, rank=rank, rate=rate, residual=residual)
                for index, rank in enumerate(RANKS)
            ]
            folder = Path(tempfile.mkdtemp(dir=memory_folder))
            return stack.enter_context(SimulatedRun(folder, config, MANIFEST, trainers))

        yield started


def state_of(simulated: SimulatedRun) -> GlobalState:
    federation = simulated.federation
    return GlobalState.from_bytes(bytes(federation._objects.view(federation.version.state)), MANIFEST)


def test_devices_of_four_ranks_finish_and_each_holds_the_adapter_of_its_rank(start: Start) -> None:
    simulated = start()
    simulated.until_finished()
    assert simulated.federation.version.version == 3
    for driver, rank in zip(simulated.drivers, RANKS, strict=True):
        adapter, installed_rank = driver._jobs._trainer.installed
        assert (adapter.rank, installed_rank) == (rank, rank)


def test_clients_that_do_nothing_leave_the_state_at_zero(start: Start) -> None:
    simulated = start(rate=0.0)
    simulated.until_finished()
    assert all(module.svd.rank == 0 for module in state_of(simulated).low_rank.values())


@pytest.mark.parametrize("codec", list(Codec))
def test_the_global_state_comes_close_to_the_mean_target_through_every_codec(start: Start, codec: Codec) -> None:
    simulated = start(rounds=8, handout_codec=codec, update_codec=codec, local=LocalTraining(max_steps=3))
    simulated.until_finished()
    trainers = [driver._jobs._trainer for driver in simulated.drivers]
    module = MANIFEST.low_rank[0]
    target = np.mean([left @ right for left, right in (t.target(module) for t in trainers)], axis=0)
    found = state_of(simulated).low_rank[module.name].svd
    error = np.linalg.norm((found.U * found.S) @ found.Vt - target) / np.linalg.norm(target)
    assert error < 0.35


def test_a_run_broken_off_and_restarted_at_any_step_ends_in_the_same_bytes(start: Start) -> None:
    whole = start()
    whole.until_finished()
    for steps in range(3, 43, 8):
        broken = start()
        for _ in range(steps):
            broken.step()
        broken.stop_aggregator()
        broken.start_aggregator()
        broken.until_finished()
        assert broken.federation.version.state == whole.federation.version.state


def test_links_that_break_all_the_time_cost_nothing_but_time(start: Start) -> None:
    whole = start()
    whole.until_finished()
    shaky = start()
    for step in range(400):
        shaky.step()
        if step % 7 == 0:
            shaky.network.break_links()
    shaky.until_finished()
    assert shaky.federation.version.state == whole.federation.version.state


def test_a_residual_is_handed_out_behind_the_slots_that_are_trained(start: Start) -> None:
    simulated = start(residual=True, residual_slots=12)
    simulated.until_finished()
    adapter, rank = simulated.drivers[0]._jobs._trainer.installed
    assert (adapter.rank, rank) == (12, 1)


def test_a_run_whose_updates_are_all_refused_is_given_up(start: Start) -> None:
    with pytest.raises(StalledError, match="did not end within 500 steps"):
        start(update_norm_max=1e-3, deadline_s=None).until_finished(steps_max=500)


def test_an_observer_sees_every_version_once_with_what_led_to_it(start: Start) -> None:
    simulated = start(rounds=3)
    seen: list[Committed] = []
    simulated.until_finished(seen.append)
    assert [each.version for each in seen] == [0, 1, 2, 3]
    norms = [sum(module.svd.norm for module in each.offset.low_rank.values()) for each in seen]
    assert norms[0] == 0.0 < norms[1]
    assert [len(each.report) for each in seen] == [0, 3, 3, 3]
    assert all(line["round"] == each.version for each in seen for line in each.report)
    sent = [each.traffic.sent for each in seen]
    assert sent == sorted(sent)
    assert simulated.traffic.received > seen[-1].traffic.received > seen[-1].traffic.sent > 0


def test_an_observer_of_a_run_taken_up_again_sees_what_its_forerunner_did_not(tmp_path: Path) -> None:
    config = RunConfig(run="test", rounds=4, cohort_size=2, default_rank=2)

    def run() -> SimulatedRun:
        return SimulatedRun(tmp_path, config, MANIFEST, [NumpyTrainer(seed=i, rank=i) for i in (1, 2)])

    def stop_at_two(committed: Committed) -> None:
        seen.append(committed.version)
        if committed.version == 2:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt), run() as broken:
        broken.until_finished(stop_at_two)
    with run() as resumed:
        resumed.until_finished(lambda committed: seen.append(committed.version), observed=seen[-1])
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_hundred_devices_of_which_a_fifth_takes_part_finish_with_the_last_version(tmp_path: Path) -> None:
    config = RunConfig(run="test", rounds=3, cohort_size=20, default_rank=2)
    trainers = [NumpyTrainer(seed=index + 1, rank=RANKS[index % 4]) for index in range(100)]
    with SimulatedRun(tmp_path, config, MANIFEST, trainers) as simulated:
        simulated.until_finished()
        assert simulated.federation.version.version == 3
        assert len(simulated.journal.uploads(3)) == 20
        assert {driver.finished.version for driver in simulated.drivers if driver.finished} == {3}
        assert all(trainer.installed is not None for trainer in trainers)
