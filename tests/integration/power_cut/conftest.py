"""A disk whose power can be cut, and a run that lives on it: the real daemon, with devices that lie elsewhere."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import queue
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from aggregator.config import RunConfig
from aggregator.runs import create_run
from aggregator.store.journal import Journal
from benchmarks.simulation.manifests import toy_manifest
from edge_client import EdgeClient
from edge_client.status import RoundResult
from edge_client.storage.keys import create_key
from edge_client.trainers.numpy_trainer import NumpyTrainer
from protocol.ticket import Ticket

_SIZE_BYTES = 128 << 20
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NOLOGFLUSH = 2
_BUSY_S = 10.0
_MEMORY = Path("/dev/shm")
_ROOT = Path(__file__).resolve().parents[3]
_PATIENCE_S = 60.0


class Disk:
    """An ext4 file system whose power can be cut at any instant, by root.

    A cut is ext4's emergency stop, the one the file systems' own crash tests (xfstests) use: from then on every write
    fails, no page that is dirty and no transaction of ext4's journal that is not committed reaches the device any
    more. Unmounting then throws the page cache away, and mounting again replays ext4's journal, as after a reboot.
    What is there afterwards is what somebody had flushed. ext4 commits on its own account every five seconds; here it
    waits for ten minutes, so that no timer makes durable what the program did not.

    An fsync that is under way at that instant may report success and be wrong: without power nobody would have heard
    of it. So only what was said before the cut counts (of 7,000 files that threads appended to and flushed, none was
    shorter than they had said before the cut; of 1,400, 118 were shorter than they said in all).

    What the device has been sent counts as durable: one that loses its own write cache would be crueller.

    Args:
        folder: Where image and mount point are made.

    Attributes:
        path: Where it is mounted.

    Raises:
        subprocess.CalledProcessError: This system cannot make or mount it.
    """

    def __init__(self, folder: Path) -> None:
        self._image, self.path = folder / "image", folder / "disk"
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(_SIZE_BYTES)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()

    def cut(self) -> None:
        """Cuts the power. Processes that use the disk live on and get EIO; what they say from now on is void."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(fd)

    def restore(self) -> None:
        """Brings the power back; whoever used the disk must have ended."""
        self.unmount()
        self._mount()

    def unmount(self) -> None:
        """Lets go of the disk; waits for killed processes to be gone."""
        give_up = time.monotonic() + _BUSY_S
        while True:
            gc.collect()  # a mapping that this process forgot to let go of keeps it busy, too
            try:
                _run("umount", str(self.path))
                return
            except subprocess.CalledProcessError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.02)

    def remove(self) -> None:
        """Leaves no mount and no loop device behind, whatever has happened."""
        if self.path.is_mount():
            _run("umount", "--lazy", str(self.path))

    def _mount(self) -> None:
        _run("mount", "-o", "loop,commit=600", str(self._image), str(self.path))


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A fresh disk; without root, loop devices or ext4 the test is skipped."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk and cut its power")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4 here")
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        try:
            made = Disk(Path(folder))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no file system can be mounted on a loop device here: {error.stderr.strip()}")
        try:
            yield made
        finally:
            made.remove()


class Site:
    """A run whose home lies on the disk. Its devices do not: the power cut is not theirs, and they remember.

    Args:
        disk: The disk.
        folder: Where devices and logs lie.
        ranks: The devices, by their ranks; each round waits for all of them.
        rounds: Rounds of the run.

    Attributes:
        home: The run's home.
        acks: The acknowledgements that devices saw while there was power, as ``(device key, round)``.
        log: What the daemons wrote to standard error.
    """

    def __init__(self, disk: Disk, folder: Path, ranks: Sequence[int], rounds: int) -> None:
        self._disk, self._folder, self._ranks = disk, folder, ranks
        self._endpoint: str | None = None
        self._arrivals: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self.acks: list[tuple[str, int]] = []
        self.log = folder / "daemon.log"
        config = RunConfig(
            run="run", rounds=rounds, cohort_size=len(ranks), default_rank=1, poll_s=0.02, strict_enrolment=True
        )
        self.home = create_run(disk.path / "home", config, toy_manifest(rank_max=max(ranks)))
        self._keys = [create_key(folder / f"{number}.key").public for number in range(len(ranks))]
        with Journal(self.home.journal) as journal:
            for key in self._keys:
                journal.enrol_client(key, "", time.time())

    @contextmanager
    def powered(self, command: Sequence[str] = ("-m", "aggregator.cli", "serve")) -> Iterator[subprocess.Popen[str]]:
        """Runs the daemon and all devices; in the end the daemon is killed, if it has not ended, and they stop.

        Args:
            command: Arguments for Python that serve a home.
        """
        self._arrivals = queue.SimpleQueue()
        with ExitStack() as stack:
            daemon = stack.enter_context(self._daemon(command))
            for number in range(len(self._ranks)):
                stack.enter_context(self._device(number)).start()
            yield daemon

    def wait_for_acks(self, number: int) -> None:
        """Returns when devices have seen this many acknowledgements more."""
        for _ in range(number):
            self.acks.append(self._arrivals.get(timeout=_PATIENCE_S))

    def cut_power(self) -> None:
        """Cuts the disk's power; acknowledgements after that are void."""
        while not self._arrivals.empty():
            self.acks.append(self._arrivals.get())
        self._disk.cut()

    @contextmanager
    def _daemon(self, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        endpoint = [] if self._endpoint else ["--endpoint", "tcp://127.0.0.1:0"]
        with (
            self.log.open("a") as log,
            subprocess.Popen(
                [sys.executable, *command, str(self.home.root), "--json", *endpoint],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)},
            ) as daemon,
        ):
            try:
                assert daemon.stdout is not None
                line = daemon.stdout.readline()
                assert line, self.log.read_text()
                bound = json.loads(line)["endpoint"]
                assert self._endpoint in (None, bound), "the daemon forgot where its devices look for it"
                self._endpoint = bound
                yield daemon
            finally:
                daemon.kill()

    def _device(self, number: int) -> EdgeClient:
        assert self._endpoint is not None
        arrivals = self._arrivals

        def on_round(result: RoundResult) -> None:
            if result.accepted:
                arrivals.put((self._keys[number], result.round))

        server_key, _ = self.home.server_keys()
        ticket = Ticket(
            run="run",
            endpoint=self._endpoint,
            enrolment_endpoint=self._endpoint,
            server_key=server_key.decode(),
            token=None,
        )
        return EdgeClient(
            ticket,
            trainer=NumpyTrainer(seed=number + 1, rank=self._ranks[number], num_examples=10 * (number + 1)),
            state_dir=self._folder / f"device-{number}",
            key=self._folder / f"{number}.key",
            on_round=on_round,
        )


@pytest.fixture
def new_site(disk: Disk, tmp_path: Path) -> Callable[..., Site]:
    """Makes the run on the disk: ``new_site(ranks, rounds)``."""
    return lambda ranks, rounds: Site(disk, tmp_path, ranks, rounds)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
