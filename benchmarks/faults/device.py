"""One device's process: the product's own client with the NumPy trainer, keeping a record of all it does and hears.

Started as ``python -m benchmarks.faults.device SPEC`` with a JSON object; prints one line when it begins to dial.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zmq

from benchmarks.faults.records import Recorder
from edge_client import EdgeClient
from edge_client.storage.keys import KeyPair
from edge_client.trainer import LocalResult, Progress, Trainer
from edge_client.trainers.numpy_trainer import NumpyTrainer
from edge_client.transport.base import LinkEvent, Received
from edge_client.transport.zmq_transport import ZmqNetwork, ZmqTransport
from protocol.assignment import Assignment
from protocol.header import Frames, decode
from protocol.messages import Ack, Chunk, Credit, Message, Nack, Offer, Task, Wait, Welcome
from protocol.payload import AdapterTensors

__all__ = ["DeviceSpec", "RecordedClient", "RecordedTrainer", "main"]


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """What a device's process is told."""

    name: str
    """What the operator calls it."""
    rank: int
    """LoRA rank."""
    number: int
    """Its identity to the trainer, above 0."""
    ticket: str
    """Its ticket's file."""
    folder: str
    """Its state, kept from life to life."""
    record: str
    """File to tell in."""

    def to_json(self) -> str:
        """The process's argument."""
        return json.dumps(asdict(self))


class RecordedTrainer:
    """A trainer whose every training is on the disk before it begins and after it has ended.

    Args:
        inner: Does the work.
        recorder: Where to tell.
    """

    def __init__(self, inner: Trainer, recorder: Recorder) -> None:
        self._inner, self._recorder = inner, recorder
        self.info, self.install = inner.info, inner.install

    def run(
        self,
        assignment: Assignment,
        handout: AdapterTensors,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> LocalResult:
        """As the trainer."""
        facts = {"round": assignment.round, "token": assignment.token}
        self._recorder.tell("training", sync=True, **facts)
        result = self._inner.run(assignment, handout, cancelled=cancelled, progress=progress)
        self._recorder.tell("trained", sync=True, **facts)
        return result


class RecordedTransport(ZmqTransport):
    """A connection that tells what is offered, sent, credited and acknowledged, at the moment it crosses.

    Args:
        recorder: Where to tell.
        context: As for the transport.
        endpoint: As for the transport.
        server_key: As for the transport.
        key: As for the transport.
    """

    def __init__(
        self,
        recorder: Recorder,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        server_key: str,
        key: KeyPair,
    ) -> None:
        super().__init__(context, endpoint, server_key, key)
        self._recorder = recorder
        recorder.tell("dialled")

    def send(self, frames: Frames) -> None:
        """Tells, then sends: what is told may not have left, what has left was told."""
        self._tell(decode(frames))
        super().send(frames)

    def recv(self, timeout_s: float) -> LinkEvent | None:
        """Tells before the client acts on it."""
        event = super().recv(timeout_s)
        if isinstance(event, Received):
            self._tell(decode(event.frames))
        return event

    def _tell(self, message: Message) -> None:
        match message:
            case Offer():
                facts = {name: getattr(message, name) for name in ("upload", "token", "sha256", "size", "num_examples")}
                self._recorder.tell("offer", **facts)
            case Chunk():
                self._recorder.tell("chunk", upload=message.upload, end=message.offset + len(message.payload))
            case Credit():
                self._recorder.tell("credit", upload=message.upload, have=message.have)
            case Ack():
                self._recorder.tell("ack", upload=message.ref)
            case Nack():
                self._recorder.tell("nack", upload=message.ref, code=message.code, reason=message.reason)
            case Task():
                assignment = Assignment.from_json(bytes(message.payload))
                self._recorder.tell("task", round=assignment.round, token=assignment.token)
            case Welcome() | Wait():
                self._recorder.tell(message.type.lower())


class RecordedNetwork(ZmqNetwork):
    """Opens recorded connections.

    Args:
        recorder: Where they tell.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def connect(self, endpoint: str, server_key: str, key: KeyPair) -> ZmqTransport:
        """Dials."""
        return RecordedTransport(self._recorder, self._context, endpoint, server_key, key)


class RecordedClient(EdgeClient):
    """The client, on a recorded network.

    Args:
        recorder: Where its connections tell.
        arguments: The client's own.
    """

    def __init__(self, recorder: Recorder, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._recorder = recorder

    def _open_network(self) -> ZmqNetwork:
        return RecordedNetwork(self._recorder)


def main(spec: DeviceSpec) -> None:
    """Takes part until the run is over, or until it is killed."""
    recorder, outbox = Recorder(Path(spec.record)), Path(spec.folder) / "outbox"
    recorder.tell("started", outbox=[path.stem for path in outbox.glob("*.json")])
    trainer = NumpyTrainer(seed=spec.number, rank=spec.rank, num_examples=100 * spec.number)
    client = RecordedClient(
        recorder,
        ticket=spec.ticket,
        trainer=RecordedTrainer(trainer, recorder),
        state_dir=spec.folder,
        name=spec.name,
    )
    print(spec.name, flush=True)
    client.run()


if __name__ == "__main__":
    main(DeviceSpec(**json.loads(sys.argv[1])))
