"""One seed from data to figures: the federation in real processes, and beside it what it has to be compared with."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from aggregator.store.home import Home
from benchmarks.command_line import BenchmarkError
from benchmarks.local import fresh_adapter, train_locally
from benchmarks.quickstart.device import DeviceSpec
from benchmarks.quickstart.evaluation import Evaluator, Score, evaluator_of
from benchmarks.quickstart.outcome import DeviceOutcome, SeedOutcome
from benchmarks.quickstart.processes import DevicePool, Event, invite, make_home, serve
from benchmarks.quickstart.progress import FederationProgress
from benchmarks.quickstart.settings import DEVICES, Device, Settings
from benchmarks.quickstart.study import Study
from benchmarks.quickstart.versions import FinishedRun, read_finished_run
from benchmarks.stages import Stages
from edge_client.errors import EdgeClientError
from edge_client.methods.lora import Lora
from edge_client.model.manifest_writer import write_manifest
from edge_client.storage.keys import create_key
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors

__all__ = ["Experiment", "Finished"]

_POLL_S = 0.5
_RANK_MAX = max(device.rank for device in DEVICES)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A seed's figures, and what is needed to use its result."""

    outcome: SeedOutcome
    """The figures."""
    trainer: TorchTrainer
    """Holds the base model."""
    adapter: AdapterTensors
    """The global adapter at the highest rank."""


class Experiment:
    """One seed.

    Args:
        settings: The call's.
        study: The data.
        seed: Of data order and fresh rows.
        model: Folder or hub id of the base.
        folder: An empty folder for home, tickets and data.
        stages: Says what is being done.
    """

    def __init__(self, settings: Settings, study: Study, seed: int, model: str, folder: Path, stages: Stages) -> None:
        self._settings, self._study, self._seed, self._model = settings, study, seed, model
        self._folder, self._stages = folder, stages
        self._home = folder / "home"
        self._manifest_file, self._held_out = folder / "manifest.json", folder / "held_out.jsonl"
        self._seconds: dict[str, float] = {}

    def run(self) -> Finished:
        """Runs it.

        Raises:
            BenchmarkError: A process failed, or the model does not fit.
        """
        torch.set_num_threads(1)  # the devices work at the same time
        try:
            return self._run()
        except EdgeClientError as error:
            raise BenchmarkError(str(error)) from error

    def _run(self) -> Finished:
        pool = DevicePool(self._make_folders())
        with ExitStack() as processes:
            processes.enter_context(pool)
            manifest = self._prepare()
            with serve(self._home, self._folder / "aggregator.txt"):
                pool.begin(self._device_specs())
                federated = self._federate(pool)
            handed_on = processes.pop_all()
        with handed_on:  # the devices train alone while we train on everything
            run = read_finished_run(Home(self._home), manifest)
            trainer, evaluator = self._trainer(), evaluator_of(manifest.task, self._held_out)
            trainer.info(manifest)
            rounds = self._score_versions(evaluator, trainer, run)
            zero_shot = rounds.pop(0)
            pooled = self._train_pooled(evaluator, trainer, manifest, pool)
            self._stages.say("waiting for the devices that train alone")
            scores = {(name, event["kind"]): event for name, event in pool.until("alone")}
        self._seconds["all"] = self._stages.elapsed_s
        outcome = SeedOutcome(
            seed=self._seed,
            seconds=self._seconds,
            untrained={**self._study.untrained, "zero-shot": zero_shot},
            rounds=rounds,
            pooled=pooled,
            devices=[
                DeviceOutcome(
                    name=name,
                    device=device,
                    num_examples=federated[name]["num_examples"],
                    received=federated[name]["received"],
                    sent=federated[name]["sent"],
                    alone=_score(scores[name, "alone"]),
                    own_rank=_score(scores[name, "own_rank"]),
                )
                for name, device in self._devices.items()
            ],
            layers=run.layers,
        )
        return Finished(outcome=outcome, trainer=trainer, adapter=run.versions[-1])

    @property
    def _devices(self) -> Mapping[str, Device]:
        return dict(zip(self._study.train, DEVICES, strict=True))

    def _make_folders(self) -> dict[str, Path]:
        """An empty folder a device, by its name."""
        folders = {name: self._folder / name for name in self._devices}
        for folder in folders.values():
            folder.mkdir()
        return folders

    def _prepare(self) -> Manifest:
        """Writes data and manifest, and makes the home."""
        _write_rows(self._held_out, self._study.held_out)
        for name, rows in self._study.train.items():
            _write_rows(self._train_file(name), rows)
        _write_rows(self._folder / "pooled.jsonl", [row for rows in self._study.train.values() for row in rows])
        preset = self._settings.preset
        modules = self._study.target_modules if self._settings.model is None else None
        manifest = write_manifest(
            self._model, self._study.task, rank_max=_RANK_MAX, method=Lora(target_modules=modules)
        )
        self._manifest_file.write_bytes(manifest.to_json())
        make_home(
            self._home,
            self._manifest_file,
            self._study.local,
            rounds=preset.rounds,
            cohort_size=len(DEVICES),
            poll_s=_POLL_S,
            server_learning_rate=self._study.server_learning_rate,
            keep_versions=preset.rounds,  # every round is scored in the end
            seed=self._seed,
        )
        return manifest

    def _device_specs(self) -> list[DeviceSpec]:
        specs = []
        for name, device in self._devices.items():
            ticket, key = self._folder / name / "ticket", self._folder / name / "key"
            invite(self._home, ticket)
            # The order of a device's data follows its key: from a seed, so that the same call gives the same figures.
            create_key(key, hashlib.sha256(f"{self._seed} {name}".encode()).digest())
            specs.append(
                DeviceSpec(
                    name=name,
                    device=device,
                    ticket=str(ticket),
                    folder=str(self._folder / name),
                    key=str(key),
                    model=self._model,
                    train=str(self._train_file(name)),
                    held_out=str(self._held_out),
                    quantization=self._settings.quantization,
                    manifest=str(self._manifest_file),
                    rounds=self._settings.preset.rounds,
                    local=self._study.local,
                    seed=self._seed,
                )
            )
        return specs

    def _federate(self, pool: DevicePool) -> dict[str, Event]:
        """Follows the devices to the end of the run; what each told then, by name."""
        started = self._stages.elapsed_s
        terminal = sys.stdout if sys.stdout.isatty() else None
        ranks = {name: device.rank for name, device in self._devices.items()}
        progress = FederationProgress(self._stages, self._settings.preset.rounds, ranks, terminal)
        found = {}
        for name, event in pool.until("federated"):
            progress.show(name, event)
            if event["kind"] == "federated":
                found[name] = event
        self._seconds["federated"] = self._stages.elapsed_s - started
        return found

    def _trainer(self) -> TorchTrainer:
        return TorchTrainer(
            self._model,
            self._folder / "pooled.jsonl",
            eval_data=self._held_out,
            quantization=self._settings.quantization,
            rank=_RANK_MAX,
        )

    def _score_versions(self, evaluator: Evaluator, trainer: TorchTrainer, run: FinishedRun) -> dict[int, Score]:
        """The untrained model's score, as round 0, and those of the rounds that the preset has scored."""
        preset = self._settings.preset
        numbers = [n for n in range(preset.rounds + 1) if n % preset.score_every == 0 or n == preset.rounds]
        self._stages.say(f"scoring the rounds on {len(self._study.held_out)} held-out examples")
        return {number: evaluator.score(trainer, run.versions[number]) for number in numbers}

    def _train_pooled(self, evaluator: Evaluator, trainer: TorchTrainer, manifest: Manifest, pool: DevicePool) -> Score:
        """The ceiling: all data in one place, at the highest rank.

        As many steps as a device takes, each on as many examples as all devices' steps together.
        """
        preset, local = self._settings.preset, self._study.local
        self._stages.say("training on everybody's data in one place, for comparison")
        adapter = train_locally(
            trainer,
            fresh_adapter(manifest, _RANK_MAX, self._seed),
            rounds=preset.rounds,
            local=replace(local, batch_size=local.batch_size * len(DEVICES)),
            seed=self._seed,
            after_round=lambda number: _take_free_cores(pool),
        )
        return evaluator.score(trainer, adapter)

    def _train_file(self, name: str) -> Path:
        return self._folder / name / "train.jsonl"


def _take_free_cores(pool: DevicePool) -> None:
    """Threads for as many cores as there are, once the devices no longer need them."""
    if not pool.working:
        torch.set_num_threads(os.cpu_count() or 1)


def _score(event: Event) -> Score:
    return Score(metrics=event["metrics"], by_query=np.array(event["by_query"], dtype=np.float64))


def _write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
