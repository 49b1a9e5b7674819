"""A device's process, killed in its second private round: ``python private_device.py HOME between-steps|unsent``."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

from edge_client.session.events import Failed, Prepare, Train
from edge_client.session.jobs import Jobs
from edge_client.storage.home import Home
from edge_client.trainer import LocalResult, TrainerInfo
from protocol.assignment import Assignment, AssignmentKind, Handout, LocalTraining
from protocol.codecs import Codec
from protocol.manifest import BaseModel, DenseTensor, Manifest, Quantization, Task, TaskKind
from protocol.payload import Layout

LOCAL = LocalTraining(noise_multiplier=1.0, batch_size=10, epochs=2.0)
STEPS = LOCAL.steps(100)


def die(*_: object) -> None:
    """The end of the process, at this very instruction."""
    os.kill(os.getpid(), signal.SIGKILL)


class Trainer:
    """Trains nothing; says that it did so privately."""

    def __init__(self, dies_in: int | None) -> None:
        self._dies_in = dies_in

    def info(self, manifest: Manifest) -> TrainerInfo:
        self._layout = Layout.of(manifest)
        return TrainerInfo(
            fingerprint=manifest.base.fingerprint,
            quantization=Quantization.FP32,
            rank=None,
            residual=False,
            num_examples=100,
            private=True,
        )

    def run(self, assignment, handout, *, cancelled, progress) -> LocalResult:
        for step in range(STEPS):
            if assignment.round == self._dies_in and step == STEPS // 2:
                die()
        return LocalResult(update=self._layout.zeros(0), num_examples=100, metrics={"train_loss": 0.5})


def stored(home: Home, data: bytes) -> str:
    """Puts an object where a download would have put it."""
    digest = hashlib.sha256(data).hexdigest()
    home.objects.open(digest, len(data), keep=[path.stem for path in (home.folder / "objects").iterdir()])
    home.objects.write(digest, 0, data)
    assert home.objects.seal(digest)
    return digest


def main(folder: Path, where: str) -> None:
    """Two rounds, of which the second is not survived."""
    manifest = Manifest(
        base=BaseModel(name="none", fingerprint="0" * 64, architecture="none", tokenizer_digest="0" * 64),
        task=Task(kind=TaskKind.CAUSAL_LM),
        rank_max=1,
        dense=(DenseTensor(name="bias", shape=(7,)),),
    )
    layout = Layout.of(manifest)
    with Home(folder) as home:
        trainer = Trainer(2 if where == "between-steps" else None)
        jobs = Jobs(home, trainer, cancelled=lambda: False, progress=lambda progress: None)
        jobs.of(Prepare(stored(home, manifest.to_json())))()
        body = layout.encode(layout.zeros(0), Codec.FP32)
        handout = Handout(digest=stored(home, body), object_bytes=len(body), codec=Codec.FP32, slots=0)
        for number in (1, 2):
            if (number, where) == (2, "unsent"):
                home.outbox.put = die
            assignment = Assignment(
                kind=AssignmentKind.TRAIN,
                run="run",
                round=number,
                version=0,
                token=f"{number:032x}",
                rank=0,
                handout=handout,
                local=LOCAL,
            )
            outcome = jobs.of(Train(assignment))()
            assert not isinstance(outcome, Failed), outcome.error


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
