import asyncio
import os
import sys
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.faults.victim import Victim, lives


def victim(tmp_path: Path, code: str) -> Victim:
    return Victim("it", [sys.executable, "-c", code], os.environ, tmp_path / "log")


def test_a_plan_of_lives_is_a_function_of_seed_and_name() -> None:
    def plan(seed: int, name: str) -> list[object]:
        return list(islice(lives(seed, name, 2.0), 50))

    assert plan(1, "a") == plan(1, "a")
    assert plan(1, "a") != plan(2, "a")
    assert plan(1, "a") != plan(1, "b")


def test_lives_last_the_mean_on_average_and_one_in_ten_ends_starting() -> None:
    found = list(islice(lives(0, "a", 3.0), 5000))
    at_work = [life.seconds for life in found if not life.from_start]
    assert 2.8 < sum(at_work) / len(at_work) < 3.2
    assert 0.08 < 1 - len(at_work) / len(found) < 0.12


def test_a_killed_process_starts_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        process = victim(tmp_path, "import time; print('up', flush=True); time.sleep(60)")
        for _ in range(2):
            await process.start()
            await process.ready()
            await process.live(0.01)
            await process.kill()

    asyncio.run(scenario())


@pytest.mark.parametrize("while_it", ["starts", "lives"])
def test_a_process_that_ends_by_itself_is_an_error_with_its_last_words(tmp_path: Path, while_it: str) -> None:
    ready = "print('up', flush=True)" if while_it == "lives" else "pass"

    async def scenario() -> None:
        process = victim(tmp_path, f"import sys; {ready}; sys.exit('no more')")
        await process.start()
        await process.ready()
        await process.live(10.0)

    with pytest.raises(BenchmarkError, match="it ended by itself with exit code 1; it said last: no more"):
        asyncio.run(scenario())


def test_a_process_that_never_gets_ready_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.faults.victim._START_PATIENCE_S", 0.05)

    async def scenario() -> None:
        process = victim(tmp_path, "import time; time.sleep(60)")
        await process.start()
        try:
            await process.ready()
        finally:
            await process.close()

    with pytest.raises(BenchmarkError, match="it was not ready"):
        asyncio.run(scenario())
