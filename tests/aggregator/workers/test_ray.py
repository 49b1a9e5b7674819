"""A merge on a real Ray cluster of two nodes on this machine, each with one CPU."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.merge import MergeError
from aggregator.merge.opened import merge_here
from aggregator.merge.strategies import RoundInput, make_strategy
from aggregator.rounds import work
from aggregator.rounds.work import MergeJob, merge_cohort
from aggregator.workers.cluster import RayCluster
from protocol.codecs import Codec
from tests.aggregator.merge.strategies.bench import RANK_MAX, Bench, manifest_of
from tests.aggregator.merge.strategies.test_module_job import second_round

pytest.importorskip("ray", reason="needs the extra ray")

from ray.cluster_utils import Cluster

from aggregator.workers.ray_executor import RETRIES, RayExecutor
from aggregator.workers.ray_merge import merge_round_sent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]

SHAPES = {"wide": (60, 300), "large": (420, 380), "small": (9, 6), "tall": (200, 30), "row": (1, 7)}
NODE = {"num_cpus": 1, "object_store_memory": 150 << 20}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as environment:
        environment.chdir(tmp_path_factory.mktemp("nodes"))
        environment.setenv("OMP_NUM_THREADS", "2")  # what a careless operator's nodes have
        made = Cluster(initialize_head=True, head_node_args=NODE)
        made.add_node(**NODE)
    yield made
    made.shutdown()


@pytest.fixture
def workers(cluster: Cluster) -> Iterator[RayExecutor]:
    with RayExecutor(cluster.address) as executor:
        yield executor


def a_round(strategy: str = "delta", clients: int = 30) -> tuple[Bench, Any, RoundInput]:
    bench = Bench(make_strategy(strategy), manifest_of(SHAPES, RANK_MAX))
    drawn = [(1 + client % RANK_MAX, 1 + client, None if client % 4 else ("large",)) for client in range(clients)]
    return bench, *second_round(bench, drawn, Codec.BF16)


# --- the executor -----------------------------------------------------------------------------------------------------


def test_a_task_runs_on_the_cluster_with_one_blas_thread(workers: RayExecutor) -> None:
    def threads() -> tuple[int, int]:
        from threadpoolctl import threadpool_info

        np.linalg.qr(np.eye(4))
        return os.getpid(), max(pool["num_threads"] for pool in threadpool_info())

    pid, used = workers.submit(threads).result(60)
    assert pid != os.getpid()
    assert used == 1
    assert workers.cpus == 2


def test_what_a_task_raises_is_what_its_future_raises(workers: RayExecutor) -> None:
    error = workers.submit(os.stat, "/nowhere").exception(60)
    assert type(error) is FileNotFoundError


def test_a_task_whose_process_is_killed_runs_again(workers: RayExecutor, tmp_path: Path) -> None:
    def killed_once(flag: Path) -> str:
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    assert workers.submit(killed_once, tmp_path / "flag").result(60) == "done"


def test_a_task_that_kills_every_process_breaks_in_the_end(workers: RayExecutor, tmp_path: Path) -> None:
    def kill(folder: Path) -> None:
        (folder / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    assert isinstance(workers.submit(kill, tmp_path).exception(120), BrokenExecutor)
    assert len(list(tmp_path.iterdir())) == 1 + RETRIES


def test_a_cancelled_task_makes_room_though_it_runs(workers: RayExecutor, tmp_path: Path) -> None:
    def sleep(flag: Path) -> None:
        flag.touch()
        time.sleep(3600)

    tasks = [workers.submit(sleep, tmp_path / str(number)) for number in range(5)]
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    assert all(task.cancel() for task in tasks)
    assert workers.submit(int).result(60) == 0


def test_an_executor_that_is_shut_down_takes_no_task(cluster: Cluster) -> None:
    executor = RayExecutor(cluster.address)
    hanging = executor.submit(time.sleep, 3600)
    executor.shutdown(wait=False)
    assert hanging.cancelled()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(int)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no port"])
def test_a_cluster_that_is_not_there_is_told_at_once(address: str) -> None:
    with pytest.raises(BrokenExecutor, match=f"no Ray cluster answers at '{address}'"):
        RayExecutor(address)


# --- the merge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["delta", "hlora", "hetlora"])
def test_two_nodes_merge_to_the_bits_of_one_process(workers: RayExecutor, tmp_path: Path, strategy: str) -> None:
    bench, state, given = a_round(strategy)
    merged, report = merge_round_sent(workers, bench.strategy, state, given, tmp_path)
    alone, same_report = merge_here(bench.strategy.open(state, given))
    assert bench.strategy.to_bytes(merged) == bench.strategy.to_bytes(alone)
    assert report == same_report
    assert not list(tmp_path.iterdir())


class Killing(RayExecutor):
    """Kills the process of every task once, when its work is done and not told yet."""

    def __init__(self, address: str, flags: Path) -> None:
        super().__init__(address)
        self.flags, self.tasks = flags, 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks += 1

        def killed_once(flag: Path, *args: Any) -> Any:
            result = fn(*args)
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return super().submit(killed_once, self.flags / str(self.tasks), *args, **kwargs)


def test_workers_killed_amid_a_merge_change_no_bit(cluster: Cluster, tmp_path: Path) -> None:
    bench, state, given = a_round()
    flags, scratch = tmp_path / "flags", tmp_path / "scratch"
    flags.mkdir()
    scratch.mkdir()
    with Killing(cluster.address, flags) as workers:
        merged, _ = merge_round_sent(workers, bench.strategy, state, given, scratch)
    assert len(list(flags.iterdir())) == len(SHAPES)
    alone, _ = merge_here(bench.strategy.open(state, given))
    assert bench.strategy.to_bytes(merged) == bench.strategy.to_bytes(alone)


def test_a_node_lost_amid_a_merge_changes_no_bit(cluster: Cluster, tmp_path: Path) -> None:
    bench, state, given = a_round()
    flags, scratch = tmp_path / "flags", tmp_path / "scratch"
    flags.mkdir()
    scratch.mkdir()
    third = cluster.add_node(**NODE)

    class Losing(RayExecutor):
        """Loses a node while each of them works."""

        tasks = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.tasks += 1
            lost = flags / "lost"

            def held_up(flag: Path, *args: Any) -> Any:
                flag.touch()
                while not lost.exists():
                    time.sleep(0.01)
                return fn(*args)

            future = super().submit(held_up, flags / str(self.tasks), *args, **kwargs)
            if self.tasks == 3:
                while len(list(flags.iterdir())) < 3:
                    time.sleep(0.01)
                cluster.remove_node(third, allow_graceful=False)
                lost.touch()
            return future

    with Losing(cluster.address) as workers:
        assert workers.cpus == 3
        merged, _ = merge_round_sent(workers, bench.strategy, state, given, scratch)
    alone, _ = merge_here(bench.strategy.open(state, given))
    assert bench.strategy.to_bytes(merged) == bench.strategy.to_bytes(alone)


def test_an_update_that_cannot_be_merged_is_told_by_its_name(workers: RayExecutor, tmp_path: Path) -> None:
    bench, state, given = a_round()
    bad = given.updates[7].tensors
    data = bytearray(bad.read())
    data[-2:] = b"\xc0\x7f"  # a NaN in bfloat16
    broken = replace(given.updates[7], tensors=replace(bad, read=Broken(bytes(data))))
    updates = (*given.updates[:7], broken, *given.updates[8:])
    with pytest.raises(MergeError, match=r"update of 'client-7'.*NaN"):
        merge_round_sent(workers, bench.strategy, state, replace(given, updates=updates), tmp_path)
    assert not list(tmp_path.iterdir())


class Broken:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self) -> memoryview:
        return memoryview(self.data)


@pytest.fixture
def job(new_world: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, MergeJob]:
    """A second round that was merged without a cluster, and its job, which is worth a cluster's while."""
    monkeypatch.setattr(work, "PARALLEL_FROM_S", 0.0)
    world = new_world()
    world.play(rounds=2, size=0.5)
    return world, world.merge.jobs[-1]


@pytest.mark.parametrize("shared_files", [False, True])
def test_the_daemons_merge_gives_the_same_version_on_a_cluster(
    job: tuple[Any, MergeJob], cluster: Cluster, shared_files: bool
) -> None:
    world, merge = job
    place = RayCluster(address=cluster.address, shared_files=shared_files)
    version, report = merge_cohort(replace(merge, workers=place))
    assert version == world.federation.version
    assert list(report) == world.journal.reports(2)


def test_a_home_that_the_nodes_do_not_have_is_not_taken_for_a_damaged_one(
    job: tuple[Any, MergeJob], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, merge = job
    root = world.objects.root
    monkeypatch.chdir(root.parent)  # the nodes are elsewhere
    place = RayCluster(address=cluster.address, shared_files=True)
    with pytest.raises(BrokenExecutor, match="should have under the same path"):
        merge_cohort(replace(merge, objects=Path(root.name), workers=place))
    place = RayCluster(address=cluster.address, shared_files=False)
    version, _ = merge_cohort(replace(merge, objects=Path(root.name), workers=place))
    assert version == world.federation.version
