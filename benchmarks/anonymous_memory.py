"""The anonymous memory of this process, which no file stands behind: how much it is, and how much a call adds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.command_line import BenchmarkError

__all__ = ["anonymous_bytes", "peak_growth_bytes"]

_EVERY_S = 0.002


def anonymous_bytes() -> int:
    """How much it is now, as Linux tells it.

    Raises:
        BenchmarkError: This system does not.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else []:
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise BenchmarkError("this system does not tell a process's anonymous memory")


def peak_growth_bytes(call: Callable[[], object]) -> int:
    """The most that a call adds at any time, looked at every 2 ms. Other threads' memory counts as well."""
    before = anonymous_bytes()
    with _watching() as seen:
        call()
    return max(*seen, anonymous_bytes()) - before


@contextmanager
def _watching() -> Iterator[list[int]]:
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(_EVERY_S):
            seen.append(anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
