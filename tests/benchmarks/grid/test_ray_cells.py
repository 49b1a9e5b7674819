"""A grid's cells on a real Ray cluster of this machine: the records of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.grid import Processes, Ray, Record, Workers, run_cells

pytest.importorskip("ray", reason="needs the extra ray")

from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Ray]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 150 << 20})
    yield Ray(made.address)
    made.shutdown()


def simulated() -> Callable[[int], Record]:
    """Runs a small federation; a function of a function, so that nodes need not find this file."""

    def run(seed: int) -> Record:
        import tempfile
        from pathlib import Path

        from aggregator.config import RunConfig
        from benchmarks.simulation import Fleet, SimulatedRun
        from benchmarks.simulation.manifests import toy_manifest
        from edge_client.trainers.numpy_trainer import NumpyTrainer

        config = RunConfig(run="cell", rounds=3, cohort_size=4, default_rank=2, deadline_s=None, seed=seed)
        trainers = [NumpyTrainer(seed=number + 1, rank=1 + number % 4) for number in range(12)]
        devices = Fleet(up_bytes_per_s=1e5, down_bytes_per_s=1e6).draw(12, seed)
        with (
            tempfile.TemporaryDirectory() as folder,
            SimulatedRun(Path(folder), config, toy_manifest(rank_max=4), trainers, seed=seed, devices=devices) as run,
        ):
            run.until_finished()
            state, traffic = run.federation.version.state, run.traffic
            return {"seed": seed, "state": state, "bytes": traffic.sent + traffic.received, "virtual_s": run.clock()}

    return run


def by_seed(workers: Workers) -> dict[int, Record]:
    return {record["seed"]: record for record in run_cells(simulated(), range(4), workers)}


def test_a_cluster_makes_the_records_of_one_process(cluster: Ray) -> None:
    here = by_seed(Processes(1))
    assert len({record["state"] for record in here.values()}) == len(here) == 4
    assert by_seed(cluster) == here


def test_a_cluster_of_this_machine_is_made_where_none_is_named() -> None:
    assert by_seed(Ray(None)) == by_seed(Processes(1))


def test_what_a_cell_raises_is_raised_here(cluster: Ray) -> None:
    def broken(cell: int) -> Record:
        raise BenchmarkError(f"cell {cell}: the disk is full")

    with pytest.raises(BenchmarkError, match="the disk is full"):
        list(run_cells(broken, [1, 2], cluster))


def test_a_cluster_that_does_not_answer_is_told_of() -> None:
    with pytest.raises(BenchmarkError, match=r"127\.0\.0\.1:1.*finished cells are kept"):
        list(run_cells(simulated(), [1], Ray("127.0.0.1:1")))
