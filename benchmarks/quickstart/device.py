"""One device's process: takes part in the federation, then trains alone with the same budget, and reports.

Started as ``python -m benchmarks.quickstart.device``; reads the path of its :class:`DeviceSpec` from stdin once its
libraries are loaded, and writes one JSON event a line to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.quickstart.settings import Device
from edge_client.trainer import Trainer
from protocol.assignment import LocalTraining
from protocol.manifest import Manifest, Quantization
from protocol.payload import AdapterTensors

if TYPE_CHECKING:
    from benchmarks.quickstart.evaluation import Score

__all__ = ["AdapterHolder", "DeviceSpec", "main", "run_device"]


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """What a device's process is told."""

    name: str
    """What it owns."""
    device: Device
    """Rank and scaling."""
    ticket: str
    """Its ticket's file."""
    folder: str
    """Where it keeps its outbox."""
    key: str
    """Its key file."""
    model: str
    """Folder or hub id of the base."""
    train: str
    """Its own rows: a JSONL file."""
    held_out: str
    """The held-out rows: a JSONL file."""
    quantization: Quantization
    """How it holds the base."""
    manifest: str
    """The run's manifest file, for training alone."""
    rounds: int
    """Rounds to train alone."""
    local: LocalTraining
    """How to train alone."""
    seed: int
    """Of training alone."""

    def write(self, path: Path) -> None:
        """Writes the file that :meth:`read` reads."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what :meth:`write` wrote."""
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **fields
            | {
                "device": Device(**fields["device"]),
                "local": LocalTraining(**fields["local"]),
                "quantization": Quantization(fields["quantization"]),
            }
        )


class AdapterHolder:
    """A trainer that remembers the adapter that the aggregator left it with.

    Args:
        inner: Does the work.

    Attributes:
        adapter: What was installed last; None before.
    """

    def __init__(self, inner: Trainer) -> None:
        self._inner = inner
        self.info, self.run = inner.info, inner.run
        self.adapter: AdapterTensors | None = None

    def install(self, adapter: AdapterTensors, rank: int) -> None:
        """As the trainer."""
        self.adapter = adapter
        self._inner.install(adapter, rank)


def run_device(spec: DeviceSpec) -> None:
    """Takes part, then trains alone; tells what happens, event by event."""
    from benchmarks.local import fresh_adapter, train_locally
    from benchmarks.quickstart.evaluation import evaluator_of
    from edge_client import EdgeClient
    from edge_client.trainers.torch_trainer import TorchTrainer

    trainer = TorchTrainer(
        spec.model,
        spec.train,
        eval_data=spec.held_out,
        quantization=spec.quantization,
        rank=spec.device.rank,
        lora_alpha=spec.device.lora_alpha,
        use_rslora=spec.device.use_rslora,
    )
    holder = AdapterHolder(trainer)
    summary = EdgeClient(
        spec.ticket,
        trainer=holder,
        state_dir=spec.folder,
        key=spec.key,
        name=spec.name,
        on_progress=lambda progress: _tell("step", **asdict(progress)),
        on_round=lambda result: _tell("round", round=result.round, accepted=result.accepted, reason=result.reason),
    ).run()
    manifest = Manifest.from_json(Path(spec.manifest).read_bytes())
    info = trainer.info(manifest)
    _tell("federated", sent=summary.bytes_sent, received=summary.bytes_received, num_examples=info.num_examples)
    # The parent now trains on the pooled data, which is as much work as all devices alone: it shall not wait for us.
    os.nice(5)
    evaluator = evaluator_of(manifest.task, Path(spec.held_out))
    start = fresh_adapter(manifest, spec.device.rank, spec.seed)
    _tell_score("own_rank", evaluator.score(trainer, holder.adapter or start))
    alone = train_locally(trainer, start, rounds=spec.rounds, local=spec.local, seed=spec.seed)
    _tell_score("alone", evaluator.score(trainer, alone))


def main() -> int:
    """Runs a device and returns the exit code; what went wrong is told as an event."""
    from edge_client.errors import EdgeClientError
    from edge_client.model.quiet import silence_kernel_hint

    silence_kernel_hint()
    warnings.simplefilter("ignore")  # of the libraries: a person watches this process's parent
    import edge_client.trainers.torch_trainer  # noqa: F401  # takes seconds, in which the parent gets the data ready

    path = sys.stdin.readline().strip()
    if not path:  # the parent ended before
        return 1
    try:
        run_device(DeviceSpec.read(Path(path)))
    except EdgeClientError as error:
        _tell("failed", reason=str(error))
        return 1
    return 0


def _tell_score(kind: str, score: Score) -> None:
    _tell(kind, metrics=dict(score.metrics), by_query=score.by_query.tolist())


def _tell(kind: str, **fields: object) -> None:
    event: Mapping[str, object] = {"kind": kind, **fields}
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
