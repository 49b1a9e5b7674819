"""The messages of protocol version 1: one frozen dataclass each, with the reader that checks its fields.

A message is one header frame (its fields, as a msgpack map) and, for the three types that carry bulk, one payload
frame. Every message repeats ``q``: the client numbers its requests, and a reply carries the number it answers, so a
late reply is never taken for another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from protocol import limits
from protocol.assignment import Handout
from protocol.codecs import Codec
from protocol.errors import NackCode
from protocol.manifest import Quantization
from protocol.typed import Fields

__all__ = [
    "MESSAGES",
    "Ack",
    "Bye",
    "Chunk",
    "Credit",
    "Data",
    "Decline",
    "Enrol",
    "Enrolled",
    "Finished",
    "Get",
    "Hello",
    "Message",
    "Nack",
    "Offer",
    "Ping",
    "Pong",
    "Ready",
    "Report",
    "Role",
    "Task",
    "Wait",
    "Welcome",
]


class Role(StrEnum):
    """Who may send a message."""

    CLIENT = "client"
    AGGREGATOR = "aggregator"


@dataclass(frozen=True, kw_only=True)
class Message:
    """What all messages have; never sent itself."""

    type: ClassVar[str]
    senders: ClassVar[tuple[Role, ...]]
    payload_max: ClassVar[int] = 0
    """Bound on the payload frame in bytes; 0: the message has none."""

    q: int = 0
    """Request number: the client counts up; a reply repeats what it answers."""


@dataclass(frozen=True, kw_only=True)
class Bulk(Message):
    """A message with a payload frame."""

    payload: bytes | memoryview = field(repr=False)
    """The payload frame."""


@dataclass(frozen=True, kw_only=True)
class Hello(Message):
    """Opens a session: which protocol versions this client speaks."""

    type = "HELLO"
    senders = (Role.CLIENT,)

    version_min: int
    """Lowest version spoken."""
    version_max: int
    """Highest version spoken."""
    sdk: str
    """Name and version of the client software, for the operator's eyes."""


@dataclass(frozen=True, kw_only=True)
class Welcome(Message):
    """Accepts a session and says what run is served."""

    type = "WELCOME"
    senders = (Role.AGGREGATOR,)

    version: int
    """The version both sides now speak."""
    run: str
    """Run id."""
    epoch: str
    """Changes whenever the daemon restarts."""
    manifest: str
    """Digest of the manifest, to be fetched with ``GET``."""
    manifest_bytes: int
    """Its size."""
    chunk_max: int
    """Largest payload frame the aggregator takes or sends, bytes."""


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """Asks for work and says what this device is."""

    type = "READY"
    senders = (Role.CLIENT,)

    run: str
    """The run this client belongs to."""
    manifest: str
    """Digest of the manifest it holds."""
    fingerprint: str
    """Fingerprint of its base model's unquantised tensors."""
    quantization: Quantization
    """How it holds the base."""
    rank: int | None
    """LoRA rank it wants; None: the run's default."""
    residual: bool
    """Whether it takes the frozen residual."""
    num_examples: int
    """Local training examples."""


@dataclass(frozen=True, kw_only=True)
class Wait(Message):
    """No work now: ask again after a random time in ``[after_ms, after_ms + window_ms]``."""

    type = "WAIT"
    senders = (Role.AGGREGATOR,)

    after_ms: int
    """Earliest time to ask again, milliseconds."""
    window_ms: int
    """Width of the window to draw from, milliseconds."""
    reason: str
    """Why there is no work, for people."""


@dataclass(frozen=True, kw_only=True)
class Task(Bulk):
    """Work: the payload is an :class:`~protocol.assignment.Assignment` as JSON."""

    type = "TASK"
    senders = (Role.AGGREGATOR,)
    payload_max = limits.ASSIGNMENT_MAX_BYTES


@dataclass(frozen=True, kw_only=True)
class Finished(Message):
    """The run is over; the hand-out named is the final adapter at this client's rank."""

    type = "FINISHED"
    senders = (Role.AGGREGATOR,)

    version: int
    """Version of the final state."""
    rank: int
    """The client's rank."""
    handout: Handout
    """The final adapter."""


@dataclass(frozen=True, kw_only=True)
class Get(Message):
    """Asks for one piece of a content-addressed object. Each ``GET`` is one credit, answered by one ``DATA``."""

    type = "GET"
    senders = (Role.CLIENT,)

    digest: str
    """SHA-256 of the whole object."""
    offset: int
    """First byte wanted."""
    length: int
    """Bytes wanted, at most ``chunk_max``."""


@dataclass(frozen=True, kw_only=True)
class Data(Bulk):
    """One piece of an object."""

    type = "DATA"
    senders = (Role.AGGREGATOR,)
    payload_max = limits.CHUNK_MAX_BYTES

    digest: str
    """The object."""
    offset: int
    """Where the payload belongs."""


@dataclass(frozen=True, kw_only=True)
class Offer(Message):
    """Offers a trained update. Sending it again resumes: the answer says how much is already here."""

    type = "OFFER"
    senders = (Role.CLIENT,)

    upload: str
    """:func:`protocol.identity.upload_id`; the aggregator computes it again."""
    token: str
    """The assignment's token."""
    size: int
    """Bytes of the update object."""
    sha256: str
    """Its digest."""
    num_examples: int
    """Examples the update rests on."""
    metrics: Mapping[str, float]
    """Local metrics, such as the training loss."""


@dataclass(frozen=True, kw_only=True)
class Chunk(Bulk):
    """One piece of an offered update, within the credit."""

    type = "CHUNK"
    senders = (Role.CLIENT,)
    payload_max = limits.CHUNK_MAX_BYTES

    upload: str
    """Which upload."""
    offset: int
    """Where the payload belongs."""


@dataclass(frozen=True, kw_only=True)
class Credit(Message):
    """How far an upload is and how far it may go, both as absolute offsets: losing or repeating one is harmless."""

    type = "CREDIT"
    senders = (Role.AGGREGATOR,)

    upload: str
    """Which upload."""
    have: int
    """Contiguous bytes held."""
    upto: int
    """The client may send bytes below this offset; ``upto == have`` means queued, wait."""


@dataclass(frozen=True, kw_only=True)
class Report(Message):
    """The result of an assignment that returns metrics only."""

    type = "REPORT"
    senders = (Role.CLIENT,)

    token: str
    """The assignment's token."""
    num_examples: int
    """Examples evaluated."""
    metrics: Mapping[str, float]
    """Metrics by name."""


@dataclass(frozen=True, kw_only=True)
class Decline(Message):
    """The client cannot do its assignment, and says why, so that the round need not wait for it."""

    type = "DECLINE"
    senders = (Role.CLIENT,)

    token: str
    """The assignment's token."""
    reason: str
    """Why, for the operator."""


@dataclass(frozen=True, kw_only=True)
class Ack(Message):
    """The upload or report named is durable: fsynced and journalled. Nothing weaker is called so."""

    type = "ACK"
    senders = (Role.AGGREGATOR,)

    ref: str
    """The upload id, or the token of a report or refusal."""


@dataclass(frozen=True, kw_only=True)
class Nack(Message):
    """A request was refused."""

    type = "NACK"
    senders = (Role.AGGREGATOR,)

    code: NackCode
    """Why, for the program."""
    reason: str
    """Why and what to do, for people."""
    ref: str = ""
    """What was refused: an upload id, token or digest; empty for the request as such."""
    retry_after_ms: int = 0
    """When to try again, milliseconds, if ``code`` is ``RETRY_LATER``."""


@dataclass(frozen=True, kw_only=True)
class Ping(Message):
    """Says that this client is alive while it trains."""

    type = "PING"
    senders = (Role.CLIENT,)


@dataclass(frozen=True, kw_only=True)
class Pong(Message):
    """Answers a ``PING``."""

    type = "PONG"
    senders = (Role.AGGREGATOR,)


@dataclass(frozen=True, kw_only=True)
class Bye(Message):
    """Ends the session; durable state is untouched on both sides."""

    type = "BYE"
    senders = (Role.CLIENT, Role.AGGREGATOR)

    reason: str
    """Why, for people."""


@dataclass(frozen=True, kw_only=True)
class Enrol(Message):
    """Binds this connection's public key to the run, with a ticket's one-time token."""

    type = "ENROL"
    senders = (Role.CLIENT,)

    run: str
    """The ticket's run."""
    token: str
    """The ticket's token, 32 hex digits."""
    name: str
    """What the operator's ``status`` shall call this device."""


@dataclass(frozen=True, kw_only=True)
class Enrolled(Message):
    """The key is bound; the data port takes it from now on."""

    type = "ENROLLED"
    senders = (Role.AGGREGATOR,)

    run: str
    """The run it is bound to."""


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

MESSAGES: Mapping[str, type[Message]] = {
    kind.type: kind
    for kind in (
        *(Hello, Welcome, Ready, Wait, Task, Finished, Get, Data, Offer, Chunk, Credit),
        *(Report, Decline, Ack, Nack, Ping, Pong, Bye, Enrol, Enrolled),
    )
}
"""Every message of version 1, by its type code."""
