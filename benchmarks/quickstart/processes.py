"""Starts and ends the processes of a federation: the daemon, and one process a device that tells what it does."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from benchmarks.command_line import BenchmarkError
from benchmarks.quickstart.device import DeviceSpec
from protocol.assignment import LocalTraining

__all__ = ["DevicePool", "Event", "invite", "make_home", "serve"]

Event = Mapping[str, Any]

_GOODBYE_S = 20.0
_QUIET = {
    "OMP_NUM_THREADS": "1",  # several processes share the cores: more threads than cores only wait for each other
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def make_home(home: Path, manifest: Path, local: LocalTraining, **settings: float) -> None:
    """Makes the home of a run, as an operator would: ``tributary-aggregator init``.

    Args:
        home: Folder to make.
        manifest: The run's manifest file.
        local: How the devices train.
        settings: Others of the run, by the names of the command's flags.
    """
    training = {name: value for name, value in asdict(local).items() if name != "learning_rate_scale"}
    flags = (f"--{name}={value}" for name, value in {**settings, **training}.items())
    _aggregator("init", str(home), f"--manifest={manifest}", *flags)


def invite(home: Path, ticket: Path) -> None:
    """Writes a ticket for one device: ``tributary-aggregator invite``."""
    _aggregator("invite", str(home), f"--out={ticket}")


@contextmanager
def serve(home: Path, log: Path) -> Iterator[None]:
    """Runs the daemon on two free ports of this machine, for the length of a block.

    Raises:
        BenchmarkError: It does not come up.
    """
    ports = ["--endpoint=tcp://127.0.0.1:0", "--enrolment_endpoint=tcp://127.0.0.1:0"]
    command = [*_AGGREGATOR, "serve", str(home), *ports, "--log_level=warning", "--json"]
    with log.open("w") as errors:
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment())
    try:
        if not _stdout(daemon).readline():  # it says one line once devices can connect
            raise BenchmarkError(f"the aggregator did not start: {_last_line(log)}")
        yield
    finally:
        _end(daemon)
        _stdout(daemon).close()


class DevicePool:
    """One process a device; what they tell comes out as one stream of events.

    The processes load their libraries at once, while the caller still prepares what :meth:`begin` gives them.

    Args:
        folders: One a device, by name; each exists, and keeps what its process writes to stderr.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._events: queue.Queue[tuple[str, Event | None]] = queue.Queue()
        self._told: list[tuple[str, Event | None]] = []
        self._folders = folders
        self._processes = {name: _start(folder) for name, folder in folders.items()}
        self._readers = [
            threading.Thread(target=self._read, args=(name, _stdout(process)), daemon=True)
            for name, process in self._processes.items()
        ]
        for reader in self._readers:
            reader.start()

    def begin(self, specs: Sequence[DeviceSpec]) -> None:
        """Tells each device what to do."""
        for spec in specs:
            path = self._folders[spec.name] / "device.json"
            spec.write(path)
            with suppress(BrokenPipeError), _stdin(self._processes[spec.name]) as words:  # if it died, until() says so
                words.write(f"{path}\n")

    def until(self, kind: str) -> Iterator[tuple[str, Event]]:
        """Yields ``(device, event)`` from the start until every device has told an event of this kind.

        A fast device may have told it before the last call ended, so what was told then comes first, again.

        Raises:
            BenchmarkError: A device failed or ended before.
        """
        missing = set(self._folders)
        for name, event in self._all():
            if event is None or event["kind"] == "failed":
                if event is not None or name in missing:
                    raise BenchmarkError(f"device {name} failed: {self._reason(name, event)}")
                continue
            if event["kind"] == kind:
                missing.discard(name)
            yield name, event
            if not missing:
                return

    def _all(self) -> Iterator[tuple[str, Event | None]]:
        yield from self._told
        while True:
            self._told.append(self._events.get())
            yield self._told[-1]

    @property
    def working(self) -> bool:
        """Whether any device still runs; each ends when it has trained alone."""
        return any(process.poll() is None for process in self._processes.values())

    def close(self) -> None:
        """Ends what still runs."""
        for process in self._processes.values():
            _end(process)
        for reader, process in zip(self._readers, self._processes.values(), strict=True):
            reader.join()
            _stdout(process).close()
            with suppress(BrokenPipeError):
                _stdin(process).close()

    def __enter__(self) -> DevicePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, name: str, lines: IO[str]) -> None:
        for line in lines:
            if line.startswith("{"):  # whatever else a library prints is not ours
                self._events.put((name, json.loads(line)))
        self._events.put((name, None))

    def _reason(self, name: str, event: Event | None) -> str:
        if event is not None:
            return str(event["reason"])
        return _last_line(_log(self._folders[name]))


_AGGREGATOR = [sys.executable, "-m", "aggregator.cli"]


def _aggregator(*arguments: str) -> None:
    done = subprocess.run([*_AGGREGATOR, *arguments], capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode:
        raise BenchmarkError(done.stderr.strip() or f"`tributary-aggregator {arguments[0]}` exited {done.returncode}")


def _start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.quickstart.device"]
    with _log(folder).open("w") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()
        )


def _log(folder: Path) -> Path:
    return folder / "errors.txt"


def _environment() -> dict[str, str]:
    return {**os.environ, **_QUIET}


def _stdin(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin is not None
    return process.stdin


def _stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
