"""Real processes over real sockets: a daemon started by its own command, and devices in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEVICE = Path(__file__).with_name("device.py")
TIMEOUT_S = 100


def quiet_environment(**extra: str) -> dict[str, str]:
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONPATH": str(ROOT), **extra}


def run_command(module: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs one command of the product in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=quiet_environment(),
        check=False,
        timeout=TIMEOUT_S,
    )
    assert not check or done.returncode == 0, f"{arguments}: {done.stderr}"
    return done


class Daemon:
    """``tributary-aggregator serve`` in a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home.with_suffix(".log")
        self.endpoint: str | None = None
        self.start()

    def start(self) -> None:
        """Starts it, again after :meth:`kill`; returns when devices can connect."""
        arguments = [sys.executable, "-m", "aggregator.cli", "serve", str(self.home), "--json"]
        if self.endpoint is None:
            arguments += ["--endpoint", "tcp://127.0.0.1:0"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=log, text=True, env=quiet_environment()
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.endpoint = json.loads(line)["endpoint"]

    def kill(self) -> None:
        """Ends it at whatever instruction it is."""
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def stop(self) -> int:
        """Asks it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.close()
        return self.process.returncode

    def close(self) -> None:
        self.process.wait(TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def status(self) -> dict[str, Any]:
        return json.loads(run_command("aggregator.cli", "status", self.home, "--json").stdout)

    def invite(self, number: int) -> Path:
        ticket = self.home.with_name(f"{self.home.name}-{number}.ticket")
        run_command("aggregator.cli", "invite", self.home, "--out", ticket)
        return ticket


class Device:
    """One device in a process of its own: runs ``device.py`` with these settings."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.start()

    def start(self) -> None:
        """Starts it, again after :meth:`kill`."""
        self.process = subprocess.Popen(
            [sys.executable, str(DEVICE), json.dumps(self._settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=quiet_environment(),
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT_S)

    def result(self) -> dict[str, Any]:
        """What it printed when it was done."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    def error(self) -> str:
        """What it raised."""
        _, err = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode != 0
        return err.strip().splitlines()[-1]

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()


@pytest.fixture
def environment() -> Callable[..., dict[str, str]]:
    """The variables that processes are started with, and more."""
    return quiet_environment


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one command of the product, ``command(module, *arguments)``; it must succeed unless ``check=False``."""
    return run_command


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes homes and serves them; all daemons end with the test."""
    with ExitStack() as stack:

        def started(manifest: Path, **settings: object) -> Daemon:
            home = tmp_path / str(settings.pop("run", "home"))
            flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
            run_command("aggregator.cli", "init", home, "--manifest", manifest, "--poll_s", "0.2", *flags)
            daemon = Daemon(home)
            stack.callback(lambda: daemon.process.poll() is None and daemon.kill())
            return daemon

        yield started


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """Starts devices; all of them end with the test."""
    with ExitStack() as stack:

        def started(ticket: Path, number: int, **settings: Any) -> Device:
            device = Device(ticket=str(ticket), state_dir=str(tmp_path / f"device-{number}"), **settings)
            stack.callback(device.close)
            return device

        yield started
