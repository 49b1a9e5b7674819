"""One run under fire: the real daemon and real devices, killed and started again until both sides had their share."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aggregator.config import RunConfig
from aggregator.control import command
from aggregator.runs import create_run
from aggregator.store.home import Home
from benchmarks.command_line import BenchmarkError
from benchmarks.faults.device import DeviceSpec
from benchmarks.faults.evidence import AGGREGATOR, Evidence, Kill, Recovery, read_evidence
from benchmarks.faults.link import SlowLink
from benchmarks.faults.settings import RANKS, Preset
from benchmarks.faults.victim import Victim, lives
from benchmarks.faults.watch import Watch
from benchmarks.simulation.manifests import toy_manifest
from protocol.assignment import LocalTraining
from protocol.codecs import Codec
from protocol.ticket import Ticket

__all__ = ["Ordeal"]

_PORTS = range(20_000, 30_000)
"""Below the range that the kernel gives to outgoing connections: one of those must not take a dead daemon's port."""
_LOOK_S = 0.05
_IDLE_PATIENCE_S = 20.0
"""How long a kill waits for its victim to be at work."""
_MOMENT_S = 1.0
"""And how long it waits then, at most: about as long as an upload takes."""
_CALM_ROUNDS = 2
"""Versions to wait for once nobody is killed any more: the round in hand, and one that nothing disturbed."""
_CALM_PATIENCE_S = 120.0


class Ordeal:
    """One run.

    Args:
        preset: How much is killed.
        seed: Of the plan of kills and of the run.
        folder: Where everything is kept.
        say: Prints a line.
    """

    def __init__(self, preset: Preset, seed: int, folder: Path, say: Callable[[str], None]) -> None:
        self._preset, self._seed, self._folder, self._say = preset, seed, folder, say
        self._kills: list[Kill] = []
        self._recoveries: list[Recovery] = []
        folder.mkdir()
        self._home = self._make_home()
        ports = random.Random(seed).sample(_PORTS, 100)
        self._port, enrolment_port = [port for port in ports if _is_free(port)][:2]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        endpoints = [
            f"--endpoint=tcp://127.0.0.1:{self._port}",
            f"--enrolment_endpoint=tcp://127.0.0.1:{enrolment_port}",
        ]
        serve = ["-m", "aggregator.cli", "serve", str(self._home.root), "--json", "--log_level=info"]
        log = folder / "aggregator.log"
        self._daemon = Victim(AGGREGATOR, [sys.executable, *serve, *endpoints], environment, log)
        self._specs = [self._spec(number, rank) for number, rank in enumerate(RANKS, 1)]
        self._watch = Watch(self._home, log, self._specs, folder / "kept")
        self._devices = [
            Victim(
                spec.name,
                [sys.executable, "-m", "benchmarks.faults.device", spec.to_json()],
                environment,
                folder / f"{spec.name}.log",
            )
            for spec in self._specs
        ]

    async def run(self) -> Evidence:
        """Runs it to its end.

        Raises:
            BenchmarkError: A process ended by itself, or the run got stuck.
        """
        started_at = time.monotonic()
        cuts = random.Random(f"{self._seed} cuts")
        async with SlowLink(self._port, self._preset.rate, lambda: self._cut_after(cuts)) as link:
            try:
                await self._invite(link.port)
                await self._torment_all()
                await self._stop_daemon()
            except* BenchmarkError as group:
                raise group.exceptions[0] from group
            finally:
                for victim in (*self._devices, self._daemon):
                    await victim.close()
        self._watch.look()
        return read_evidence(
            self._home,
            kept=self._folder / "kept",
            specs=self._specs,
            kills=self._kills,
            recoveries=self._recoveries,
            steps=self._watch.steps,
            connections=link.connections,
            started_at=started_at,
        )

    # -- Before ---------------------------------------------------------------------------------------------------

    def _make_home(self) -> Home:
        manifest = toy_manifest(rank_max=max(RANKS), modules=4, width=96, dense=self._preset.dense)
        config = RunConfig(
            run="faults",
            rounds=100_000,
            cohort_size=len(RANKS),
            deadline_s=None,  # every device has to deliver in every round: a lost update would stop the run
            poll_s=0.2,
            update_codec=Codec.FP32,
            local=LocalTraining(max_steps=1),
            seed=self._seed,
        )
        return create_run(self._folder / "home", config, manifest)

    def _spec(self, number: int, rank: int) -> DeviceSpec:
        name = f"device-{number}"
        return DeviceSpec(
            name=name,
            rank=rank,
            number=number,
            ticket=str(self._folder / f"{name}.ticket"),
            folder=str(self._folder / name),
            record=str(self._folder / f"{name}.record"),
        )

    async def _invite(self, port: int) -> None:
        """Writes a ticket for each device that leads it to the slow link."""
        await self._daemon.start()
        await self._daemon.ready()
        for spec in self._specs:
            ticket = Ticket.from_json(command(self._home, "invite", expires_s=3600.0)["ticket"].encode())
            Path(spec.ticket).write_bytes(replace(ticket, endpoint=f"tcp://127.0.0.1:{port}").to_json())
        await self._daemon.stop()

    def _cut_after(self, rng: random.Random) -> int | None:
        """After how many bytes from the device a connection breaks: anywhere in an update of the largest size."""
        return rng.randrange(1, 4 * self._preset.dense) if rng.random() < self._preset.cut_share else None

    # -- Under fire -----------------------------------------------------------------------------------------------

    async def _torment_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._watch_on()), group.create_task(self._torment(self._daemon))]
            tasks += [group.create_task(self._torment(device)) for device in self._devices]
            await self._until_all_killed()
            self._tell("no more kills; two more rounds in peace")
            await self._calm()
            for task in tasks:
                task.cancel()

    async def _torment(self, victim: Victim) -> None:
        """Lets a process live and kills it, again and again, until its side had its share; then lets it live."""
        mean_s = self._preset.aggregator_life_s if victim is self._daemon else self._preset.device_life_s
        moments = random.Random(f"{self._seed} {victim.name} moments")
        for life in lives(self._seed, victim.name, mean_s):
            born_at = time.monotonic()
            await victim.start()
            if not life.from_start:
                await victim.ready()
                self._recoveries.append(
                    Recovery(victim=victim.name, at=time.monotonic(), seconds=time.monotonic() - born_at)
                )
            await victim.live(life.seconds)
            if not life.from_start:
                await self._live_on(victim, moments.random())
            if self._killed(victim) >= self._preset.kills:
                await victim.live(None)
            self._kills.append(Kill(victim=victim.name, at=time.monotonic(), starting=life.from_start))
            await victim.kill()

    async def _live_on(self, victim: Victim, share: float) -> None:
        """Waits until the process is at work, though not for ever, and a random moment longer."""
        give_up_at = time.monotonic() + _IDLE_PATIENCE_S
        while not self._watch.busy(victim.name) and time.monotonic() < give_up_at:
            await victim.live(_LOOK_S)
        await victim.live(share * _MOMENT_S)

    def _killed(self, victim: Victim) -> int:
        """Kills of a victim's side so far, those of starting processes apart."""
        side = [self._daemon] if victim is self._daemon else self._devices
        names = {each.name for each in side}
        return sum(kill.victim in names and not kill.starting for kill in self._kills)

    async def _until_all_killed(self) -> None:
        told_at = time.monotonic()
        while min(counts := (self._killed(self._daemon), self._killed(self._devices[0]))) < self._preset.kills:
            await asyncio.sleep(_LOOK_S)
            if time.monotonic() - told_at > 10.0:
                told_at = time.monotonic()
                self._tell(
                    f"kills: {counts[0]} of the aggregator, {counts[1]} of devices; version {self._watch.version}"
                )

    async def _calm(self) -> None:
        wanted = self._watch.version + _CALM_ROUNDS
        give_up_at = time.monotonic() + _CALM_PATIENCE_S
        while self._watch.version < wanted:
            if time.monotonic() > give_up_at:
                raise BenchmarkError(f"the run is stuck at version {self._watch.version} with nobody killed any more")
            await asyncio.sleep(_LOOK_S)

    async def _stop_daemon(self) -> None:
        code = await self._daemon.stop()
        if code:
            raise BenchmarkError(f"the aggregator's exit code is {code} after SIGTERM")

    async def _watch_on(self) -> None:
        while True:
            self._watch.look()
            await asyncio.sleep(_LOOK_S)

    def _tell(self, text: str) -> None:
        self._say(f"run {self._seed}  {text}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
