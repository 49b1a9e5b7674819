"""The bytes that pin version 2: computed here, stored in ``version-2.json``, compared by ``test_golden.py``.

They are written anew with ``make golden``. Bytes that change mean a new protocol version, or a mistake.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from protocol.assignment import Assignment, AssignmentKind, Handout, LocalTraining
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.header import encode
from protocol.identity import client_id, upload_id
from protocol.initializers import Distribution, Initializer, fresh_rows
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Quantization, Task, TaskKind
from protocol.messages import (
    Ack,
    Bye,
    Chunk,
    Credit,
    Data,
    Decline,
    Enrol,
    Enrolled,
    Finished,
    Get,
    Hello,
    Message,
    Nack,
    Offer,
    Ping,
    Pong,
    Ready,
    Report,
    Wait,
    Welcome,
)
from protocol.messages import Task as TaskMessage
from protocol.payload import AdapterTensors, Factor, Layout
from protocol.ticket import Ticket

FILE = Path(__file__).with_name("version-2.json")

_DIGEST, _TOKEN = "0123456789abcdef" * 4, "0123456789abcdef" * 2
_KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"  # the example key of ZeroMQ RFC 32's reference code
_HANDOUT = Handout(digest=_DIGEST, object_bytes=1000, codec=Codec.BF16, slots=8)
_HEAD = Initializer(distribution=Distribution.NORMAL, scale=0.02, seed=7)
_MANIFEST = Manifest(
    base=BaseModel(
        name="tiny/ünïcode",
        fingerprint=_DIGEST,
        architecture="TinyModel",
        tokenizer_digest=_DIGEST,
        quantizations=(Quantization.NF4, Quantization.BF16),
    ),
    task=Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes")),
    rank_max=8,
    low_rank=(LowRankModule(name="query", out_features=2, in_features=3),),
    dense=(DenseTensor(name="head", shape=(2, 2), initializer=_HEAD), DenseTensor(name="bias", shape=(2,))),
)
_ASSIGNMENT = Assignment(
    kind=AssignmentKind.TRAIN,
    run="run",
    round=3,
    version=2,
    token=_TOKEN,
    rank=4,
    handout=_HANDOUT,
    active=("query",),
    inactive=replace(_HANDOUT, digest=_DIGEST[::-1]),
    frozen_factors=(Factor.A,),
    local=LocalTraining(proximal_mu=0.01, noise_multiplier=0.8, epsilon_max=4.0),
    seed=11,
    deadline_s=90.5,
)
_UPDATE = _ASSIGNMENT.update_layout(_MANIFEST)
_TICKET = Ticket(
    run="run",
    endpoint="tcp://127.0.0.1:7700",
    enrolment_endpoint="tcp://127.0.0.1:7701",
    server_key=_KEY,
    token=_TOKEN,
    expires_at=1.5e9,
)
_MESSAGES: tuple[Message, ...] = (
    Hello(q=1, version_min=2, version_max=2, sdk="golden/1"),
    Welcome(q=1, version=2, run="run", epoch="e", manifest=_DIGEST, manifest_bytes=1000, chunk_max=1 << 20),
    Ready(
        q=2,
        run="run",
        manifest=_DIGEST,
        fingerprint=_DIGEST,
        quantization=Quantization.NF4,
        rank=None,
        residual=True,
        num_examples=300,
    ),
    Wait(q=2, after_ms=1000, window_ms=70000, reason="the round is full"),
    TaskMessage(q=3, payload=b"{}"),
    Finished(q=4, version=20, rank=8, handout=_HANDOUT),
    Get(q=5, digest=_DIGEST, offset=1 << 20, length=1 << 20),
    Data(q=5, digest=_DIGEST, offset=1 << 20, payload=b"bytes"),
    Offer(q=6, upload=_DIGEST, token=_TOKEN, size=1000, sha256=_DIGEST, num_examples=300, metrics={"loss": 0.5}),
    Chunk(q=7, upload=_DIGEST, offset=256, payload=b"bytes"),
    Credit(q=7, upload=_DIGEST, have=261, upto=4194304),
    Report(q=8, token=_TOKEN, num_examples=300, metrics={"accuracy": 0.75, "loss": 0.5}),
    Decline(q=9, token=_TOKEN, reason="the disk is full"),
    Ack(q=9, ref=_TOKEN),
    Nack(q=10, code=NackCode.RETRY_LATER, reason="busy", ref=_DIGEST, retry_after_ms=5000),
    Ping(q=11),
    Pong(q=11),
    Bye(q=12, reason="shutting down"),
    Enrol(q=1, run="run", token=_TOKEN, name="phone"),
    Enrolled(q=1, run="run"),
)


def vectors() -> dict[str, Any]:
    """All golden values of this code, as JSON holds them: bytes as hex."""
    return {
        "frames": {m.type: [bytes(frame).hex() for frame in encode(m)] for m in _MESSAGES},
        "manifest": {"json": _MANIFEST.to_json().decode(), "sha256": _MANIFEST.digest},
        "assignment": _ASSIGNMENT.to_json().decode(),
        "ticket": _TICKET.to_json().decode(),
        "payload": {codec.value: Layout.of(_MANIFEST).encode(_adapter(), codec).hex() for codec in Codec},
        "update": {codec.value: _UPDATE.encode(_update(), codec).hex() for codec in Codec},
        "initializers": {
            "normal": _HEAD.values((2, 2)).tobytes().hex(),
            "uniform": Initializer(distribution=Distribution.UNIFORM, scale=0.5, seed=7).values((3,)).tobytes().hex(),
            "fresh_rows": fresh_rows(5, "query", range(1, 3), 3).tobytes().hex(),
        },
        "identity": {"client_id": client_id(_KEY), "upload_id": upload_id("run", 3, _KEY, _TOKEN, _DIGEST)},
    }


def write() -> None:
    """Writes the file: a deliberate act, since every device in the field depends on these bytes."""
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n")


def _adapter() -> AdapterTensors:
    """Values that round, saturate nothing, and span signs and sizes, in every codec."""
    slots = np.array([[1, -2, 3.14159, 1e-3, -0.0], [0, 0, 65504, 1e-8, -1 / 3]], np.float32)
    return AdapterTensors(
        {"head": np.array([[0.1, -0.2], [300, 0]], np.float32), "bias": np.array([1e-5, -7], np.float32)}, slots
    )


def _update() -> AdapterTensors:
    """What answers the assignment: the changes of one factor, the other being frozen."""
    return AdapterTensors({}, _adapter().slots[:, : _UPDATE.width])


if __name__ == "__main__":
    write()
