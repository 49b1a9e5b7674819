import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from aggregator.workers.executors import Wakeup, worker_executors
from aggregator.workers.processes import process_pool


def readable(fd: int, timeout_s: float) -> bool:
    return bool(select.select([fd], [], [], timeout_s)[0])


def test_a_wakeup_is_seen_until_it_is_cleared() -> None:
    with Wakeup() as wakeup:
        assert not readable(wakeup.fd, 0)
        for _ in range(100_000):
            wakeup.set()  # more than a pipe holds
        assert readable(wakeup.fd, 0)
        wakeup.clear()
        assert not readable(wakeup.fd, 0)


@pytest.mark.parametrize(("who", "same_process"), [("verify", True), ("merge", False)])
def test_work_is_done_beside_the_loop_and_wakes_it(who: str, same_process: bool) -> None:
    with Wakeup() as wakeup, worker_executors(wakeup.set) as executors:
        future = getattr(executors, who).submit(os.getpid)
        assert readable(wakeup.fd, 30)
        assert (future.result(30) == os.getpid()) is same_process


def test_a_merge_may_use_as_many_processes_as_it_is_told_or_one_a_core() -> None:
    for told, workers in ((3, 3), (None, len(os.sched_getaffinity(0)))):
        with worker_executors(lambda: None, told) as executors:
            assert executors.merge_workers == workers


def test_uploads_are_checked_one_after_the_other_in_their_order() -> None:
    """What collects objects relies on it: a check that was asked for later must not end before."""
    order: list[int] = []
    with worker_executors(lambda: None) as executors:
        for number in range(100):
            executors.verify.submit(lambda number=number: (time.sleep(0.001 * (number < 3)), order.append(number)))
        executors.verify.submit(int).result(30)
    assert order == list(range(100))


def test_a_merge_uses_one_blas_thread_and_loads_no_tensor_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # as an operator's shell has them
        monkeypatch.delenv(name, raising=False)
    with worker_executors(lambda: None) as executors:
        assert executors.merge.submit(_blas_threads).result(30) <= 1
        assert executors.merge.submit(_heavy_modules).result(30) == []


def test_what_a_task_raises_reaches_its_future() -> None:
    with worker_executors(lambda: None) as executors:
        assert isinstance(executors.merge.submit(os.stat, "/nowhere").exception(30), FileNotFoundError)


def test_a_merge_process_ends_when_its_daemon_is_killed() -> None:
    program = (
        "import os, signal; from aggregator.workers.executors import worker_executors\n"
        "if __name__ == '__main__':\n"
        "    with worker_executors(lambda: None) as executors:\n"
        "        print(executors.merge.submit(os.getpid).result(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)"
    )
    # The pipe's end is seen when the last process that inherited it is gone.
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert int(daemon.stdout.readline()) != daemon.pid
        assert daemon.stdout.read() == b""
    assert daemon.returncode == -signal.SIGKILL


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "pass"])
def test_the_processes_of_a_merge_end_with_it(end: str) -> None:
    """When the daemon is killed, and when it stops in the middle of a merge."""
    program = (
        "import os, signal, time; from aggregator.workers.executors import worker_executors\n"
        "from tests.aggregator.workers.test_executors import merging_for_long\n"
        "if __name__ == '__main__':\n"
        "    with worker_executors(lambda: None) as executors:\n"
        "        executors.merge.submit(merging_for_long)\n"
        "        while not os.path.exists('merging'): time.sleep(0.01)\n"
        f"        {end}"
    )
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder, env=environment) as daemon:
            assert daemon.stdout is not None
            assert daemon.stdout.read() == b"", "its end is seen when the last process that inherited it is gone"


def merging_for_long() -> None:
    with process_pool(1) as pool:
        pool.submit(Path("merging").touch).result()
        pool.submit(time.sleep, 600).result()


def _blas_threads() -> int:
    import numpy as np
    from threadpoolctl import threadpool_info

    np.linalg.qr(np.eye(4))
    return max((pool["num_threads"] for pool in threadpool_info()), default=1)


def _heavy_modules() -> list[str]:
    return [name for name in ("torch", "transformers", "peft", "bitsandbytes") if name in sys.modules]
