"""What the devices' processes tell, whoever is faster."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.command_line import BenchmarkError
from benchmarks.quickstart import processes
from benchmarks.quickstart.processes import DevicePool


def tell(*kinds: str) -> str:
    return "".join(f"print({json.dumps(json.dumps({'kind': kind}))}, flush=True)\n" for kind in kinds)


@pytest.fixture
def pool_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """A pool of processes that run scripts instead of devices."""

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", (folder / "script").read_text()]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def pool(**scripts: str) -> DevicePool:
        for name, script in scripts.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "errors.txt").touch()
            (tmp_path / name / "script").write_text(script)
        return DevicePool({name: tmp_path / name for name in scripts})

    monkeypatch.setattr(processes, "_start", start)
    return pool


def test_a_device_may_be_done_before_another_has_begun(pool_of, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    os.mkfifo(tmp_path / "turn")
    turn = f"open({str(tmp_path / 'turn')!r}, MODE).close()\n"
    fast = tell("step", "federated", "alone") + turn.replace("MODE", "'w'")
    slow = turn.replace("MODE", "'r'") + tell("federated", "alone")
    with pool_of(fast=fast, slow=slow) as pool:
        federated = {name for name, event in pool.until("federated") if event["kind"] == "federated"}
        assert federated == {"fast", "slow"}  # whichever of their readers is heard first
        assert {name for name, event in pool.until("alone") if event["kind"] == "alone"} == {"fast", "slow"}


def test_a_device_that_died_before_it_was_told_what_to_do_is_named(pool_of) -> None:  # type: ignore[no-untyped-def]
    with pool_of(fast="") as pool:
        pool._processes["fast"].wait(20)
        pool.begin([SimpleNamespace(name="fast", write=Path.touch)])
        with pytest.raises(BenchmarkError, match="device fast failed"):
            list(pool.until("federated"))


def test_a_device_that_ends_too_early_is_named(pool_of) -> None:  # type: ignore[no-untyped-def]
    with (
        pool_of(fast=tell("federated"), slow=tell("federated", "alone")) as pool,
        pytest.raises(BenchmarkError, match="device fast failed"),
    ):
        list(pool.until("alone"))
