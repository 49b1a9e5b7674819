"""A process that is killed and started again, on the same folder and with the same command."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command_line import BenchmarkError

__all__ = ["Life", "Victim", "lives"]

_STARTING_SHARE = 0.1
_STARTING_S = 0.6
_START_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Life:
    """How long a process may live."""

    seconds: float
    """Until SIGKILL."""
    from_start: bool
    """Whether this counts from its first instruction, so that it dies starting; else from its readiness."""


def lives(seed: int, name: str, mean_s: float) -> Iterator[Life]:
    """Lives without end: exponential, so that kills are spread evenly over the time at work; one in ten dies starting.

    Args:
        seed: Of the whole plan.
        name: Of the process; each has a plan of its own.
        mean_s: Mean time at work, seconds.
    """
    rng = random.Random(f"{seed} {name}")
    while True:
        starting = rng.random() < _STARTING_SHARE
        yield Life(rng.uniform(0.0, _STARTING_S) if starting else rng.expovariate(1.0 / mean_s), starting)


class Victim:
    """One process.

    Args:
        name: For people.
        command: What to run; it prints a line to stdout when it is ready.
        environment: Its variables.
        log: Where its stderr is collected, over all lives.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._command, self._environment, self._log = list(command), dict(environment), log
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=asyncio.subprocess.PIPE, stderr=log, env=self._environment
            )

    async def ready(self) -> None:
        """Waits until it says that it is ready.

        Raises:
            BenchmarkError: It ends without, or takes too long.
        """
        stdout = self._running.stdout
        assert stdout is not None
        try:
            async with asyncio.timeout(_START_PATIENCE_S):
                line = await stdout.readline()
        except TimeoutError as error:
            raise BenchmarkError(
                f"{self.name} was not ready {_START_PATIENCE_S:.0f} s after its start: is the machine overloaded?"
            ) from error
        if not line:
            raise await self._ended()

    async def live(self, seconds: float | None) -> None:
        """Lets it be for a while; None: until it ends.

        Raises:
            BenchmarkError: It ended by itself, which nothing gives it a reason to.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._running.wait()
        except TimeoutError:
            return
        raise await self._ended()

    async def kill(self) -> None:
        """SIGKILL, at whatever instruction it is."""
        self._running.kill()
        await self._running.wait()

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        self._running.terminate()
        return await self._running.wait()

    async def close(self) -> None:
        """Kills it if it runs."""
        if self._process is not None and self._process.returncode is None:
            await self.kill()

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "start it first"
        return self._process

    async def _ended(self) -> BenchmarkError:
        code = await self._running.wait()
        lines = self._log.read_text(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "nothing")
        return BenchmarkError(f"{self.name} ended by itself with exit code {code}; it said last: {said}")
