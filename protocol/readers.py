"""From an untrusted header's fields to a message: one reader a type, each field typed and bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol import limits
from protocol.assignment import Handout
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.manifest import Quantization
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
    Task,
    Wait,
    Welcome,
)
from protocol.typed import Fields

__all__ = ["READERS"]


def _hello(f: Fields, q: int) -> Hello:
    return Hello(
        q=q,
        version_min=f.integer("version_min", maximum=1 << 16),
        version_max=f.integer("version_max", maximum=1 << 16),
        sdk=f.text("sdk", limit=64),
    )


def _welcome(f: Fields, q: int) -> Welcome:
    return Welcome(
        q=q,
        version=f.integer("version", maximum=1 << 16),
        run=f.text("run"),
        epoch=f.text("epoch", limit=64),
        manifest=f.digest("manifest"),
        manifest_bytes=f.integer("manifest_bytes", maximum=limits.MANIFEST_MAX_BYTES),
        chunk_max=f.integer("chunk_max", minimum=limits.CHUNK_MIN_BYTES, maximum=limits.CHUNK_MAX_BYTES),
    )


def _ready(f: Fields, q: int) -> Ready:
    return Ready(
        q=q,
        run=f.text("run"),
        manifest=f.digest("manifest"),
        fingerprint=f.digest("fingerprint"),
        quantization=f.member("quantization", Quantization),
        rank=f.optional_integer("rank", minimum=1, maximum=limits.RANK_MAX),
        residual=f.flag("residual"),
        num_examples=f.integer("num_examples", maximum=limits.NUM_EXAMPLES_MAX),
    )


def _wait(f: Fields, q: int) -> Wait:
    return Wait(
        q=q,
        after_ms=f.integer("after_ms", maximum=limits.WAIT_MAX_MS),
        window_ms=f.integer("window_ms", maximum=limits.WAIT_MAX_MS),
        reason=_reason(f),
    )


def _finished(f: Fields, q: int) -> Finished:
    inner = f.table("handout")
    handout = Handout(
        digest=inner.digest("digest"),
        object_bytes=inner.integer("object_bytes", maximum=limits.OBJECT_MAX_BYTES),
        codec=inner.member("codec", Codec),
        slots=inner.integer("slots", maximum=limits.RANK_MAX),
    )
    inner.finish()
    return Finished(q=q, version=f.integer("version"), rank=f.integer("rank", maximum=limits.RANK_MAX), handout=handout)


def _get(f: Fields, q: int) -> Get:
    return Get(
        q=q,
        digest=f.digest("digest"),
        offset=f.integer("offset", maximum=limits.OBJECT_MAX_BYTES),
        length=f.integer("length", minimum=1, maximum=limits.CHUNK_MAX_BYTES),
    )


def _offer(f: Fields, q: int) -> Offer:
    return Offer(
        q=q,
        upload=f.digest("upload"),
        token=f.token("token"),
        size=f.integer("size", minimum=1, maximum=limits.OBJECT_MAX_BYTES),
        sha256=f.digest("sha256"),
        num_examples=f.integer("num_examples", maximum=limits.NUM_EXAMPLES_MAX),
        metrics=f.numbers("metrics", limits.METRICS_MAX),
    )


def _credit(f: Fields, q: int) -> Credit:
    return Credit(
        q=q,
        upload=f.digest("upload"),
        have=f.integer("have", maximum=limits.OBJECT_MAX_BYTES),
        upto=f.integer("upto", maximum=limits.OBJECT_MAX_BYTES),
    )


def _report(f: Fields, q: int) -> Report:
    return Report(
        q=q,
        token=f.token("token"),
        num_examples=f.integer("num_examples", maximum=limits.NUM_EXAMPLES_MAX),
        metrics=f.numbers("metrics", limits.METRICS_MAX),
    )


def _nack(f: Fields, q: int) -> Nack:
    return Nack(
        q=q,
        code=f.member("code", NackCode),
        reason=_reason(f),
        ref=f.text("ref", limit=64),
        retry_after_ms=f.integer("retry_after_ms", maximum=limits.WAIT_MAX_MS),
    )


def _reason(f: Fields) -> str:
    return f.text("reason", limit=limits.REASON_MAX_CHARS)


def _offset(f: Fields) -> int:
    return f.integer("offset", maximum=limits.OBJECT_MAX_BYTES)


READERS: Mapping[str, Callable[[Fields, int, memoryview], Message]] = {
    "HELLO": lambda f, q, _: _hello(f, q),
    "WELCOME": lambda f, q, _: _welcome(f, q),
    "READY": lambda f, q, _: _ready(f, q),
    "WAIT": lambda f, q, _: _wait(f, q),
    "TASK": lambda f, q, payload: Task(q=q, payload=payload),
    "FINISHED": lambda f, q, _: _finished(f, q),
    "GET": lambda f, q, _: _get(f, q),
    "DATA": lambda f, q, payload: Data(q=q, digest=f.digest("digest"), offset=_offset(f), payload=payload),
    "OFFER": lambda f, q, _: _offer(f, q),
    "CHUNK": lambda f, q, payload: Chunk(q=q, upload=f.digest("upload"), offset=_offset(f), payload=payload),
    "CREDIT": lambda f, q, _: _credit(f, q),
    "REPORT": lambda f, q, _: _report(f, q),
    "DECLINE": lambda f, q, _: Decline(q=q, token=f.token("token"), reason=_reason(f)),
    "ACK": lambda f, q, _: Ack(q=q, ref=f.text("ref", limit=64)),
    "NACK": lambda f, q, _: _nack(f, q),
    "PING": lambda f, q, _: Ping(q=q),
    "PONG": lambda f, q, _: Pong(q=q),
    "BYE": lambda f, q, _: Bye(q=q, reason=_reason(f)),
    "ENROL": lambda f, q, _: Enrol(q=q, run=f.text("run"), token=f.token("token"), name=f.text("name", limit=64)),
    "ENROLLED": lambda f, q, _: Enrolled(q=q, run=f.text("run")),
}
"""How each type's fields are read; the header and payload frames are already bounded when these run."""
