"""What a run that ends badly comes to: a result where training diverged, an error where the machine failed."""

from dataclasses import dataclass

import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.grid import or_failure, run_cells
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
    records = run_cells(lambda number: seen.append(number) or {"number": number}, [3, 1, 2], workers=1)
    assert next(iter(records)) == {"number": 3}
    assert seen == [3]
    assert [record["number"] for record in records] == [1, 2]
    assert seen == [3, 1, 2]


def test_nothing_to_run_is_no_error():
    assert list(run_cells(dict, [], workers=4)) == []
