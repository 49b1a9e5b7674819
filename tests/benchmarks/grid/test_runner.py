"""What a run that ends badly comes to: a result where training diverged, an error where the machine failed."""

from dataclasses import dataclass

import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.grid import Processes, Ray, or_failure, read_workers, run_cells
from benchmarks.simulation import StalledError
from edge_client.errors import EdgeClientError


@dataclass(frozen=True, kw_only=True)
class Cell:
    arm: str = "delta"


def broken_off(cause: Exception | None):
    """A run that ends like a simulation whose device failed."""

    def run():
        raise RuntimeError(f"a simulated device failed: {cause}") from cause

    return run


def stalled():
    raise StalledError("the run did not end")


def test_training_that_diverged_is_a_result_and_what_the_machine_did_is_none():
    found = or_failure(Cell(), broken_off(EdgeClientError("the loss became nan")))
    assert found["failure"].endswith("the loss became nan")
    assert found["arm"] == "delta"
    assert or_failure(Cell(), stalled)["failure"] == "the run did not end"
    for cause in (OSError("no space left on device"), MemoryError("no memory"), None):
        with pytest.raises(BenchmarkError, match=r"arm delta: .*device failed.*start again"):
            or_failure(Cell(), broken_off(cause))


def test_one_worker_runs_cells_in_this_process_one_after_the_other():
    seen = []
    records = run_cells(lambda number: seen.append(number) or {"number": number}, [3, 1, 2], Processes(1))
    assert next(iter(records)) == {"number": 3}
    assert seen == [3]
    assert [record["number"] for record in records] == [1, 2]
    assert seen == [3, 1, 2]


@pytest.mark.parametrize("workers", [Processes(1), Processes(4), Ray(None)])
def test_nothing_to_run_is_no_error(workers):
    assert list(run_cells(dict, [], workers)) == []


def test_workers_are_processes_or_a_cluster(monkeypatch):
    monkeypatch.setattr("benchmarks.grid.workers.find_spec", lambda name: object())
    assert read_workers("3") == Processes(3)
    assert read_workers("ray") == Ray(None)
    assert read_workers("ray:node-1:6379") == Ray("node-1:6379")
    for text in ("0", "257", "-1", "", "rays", "ray:", "ray:node-1", "ray::6379", "flink:node-1:6379", "ray:node-1:x"):
        with pytest.raises(ValueError, match=r"from 1 to 256, ray, or ray:HOST:PORT"):
            read_workers(text)


def test_a_cluster_without_ray_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("benchmarks.grid.workers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'tributary-fl\[ray\]'"):
        read_workers("ray")
