"""Frames to messages and back: the only place that knows msgpack.

A header is a flat map with the keys ``v`` (protocol version), ``t`` (message type), ``q`` (request number) and the
message's own fields. There is one encoding of each message: a header that does not re-encode to the same bytes
(duplicate keys, long integer forms, another key order) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import msgpack

from protocol import limits
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError
from protocol.messages import MESSAGES, Bulk, Message
from protocol.readers import READERS
from protocol.typed import Fields

__all__ = ["Frames", "decode", "encode"]

Frames = Sequence[bytes | memoryview]


def encode(message: Message) -> list[bytes | memoryview]:
    """The frames of one message: a header, and a payload for the types that have one.

    Raises:
        LocalProtocolError: The peer would have to refuse it: a field is of the wrong type or above its bound.
    """
    frames: list[bytes | memoryview] = [_header(message)]
    if isinstance(message, Bulk):
        frames.append(message.payload)
    try:
        decode(frames)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"this {message.type} must not be sent: {error}") from error
    return frames


def decode(frames: Frames) -> Message:
    """Reads one message of a peer that need not be trusted.

    Args:
        frames: The frames as they came, routing id removed.

    Raises:
        RemoteProtocolError: Anything but one message of version 2 within its bounds.
    """
    if not 1 <= len(frames) <= 2:
        raise RemoteProtocolError(f"expected 1 or 2 frames, got {len(frames)}")
    if len(frames[0]) > limits.HEADER_MAX_BYTES:
        raise RemoteProtocolError(f"a header of {len(frames[0])} bytes", NackCode.TOO_LARGE)
    header = Fields(_unpack(bytes(frames[0])), "header")
    _check_version(header)
    kind = header.text("t", limit=16)
    if kind not in MESSAGES:
        raise RemoteProtocolError(f"unknown message type {kind!r}")
    payload = _payload(MESSAGES[kind], frames)
    message = READERS[kind](header, header.integer("q"), payload)
    header.finish()
    if _header(message) != bytes(frames[0]):
        raise RemoteProtocolError(f"{kind}: the header is not in its canonical encoding")
    return message


def _check_version(header: Fields) -> None:
    version = header.integer("v", maximum=1 << 16)
    if version != limits.PROTOCOL_VERSION:
        raise RemoteProtocolError(
            f"protocol version {version}; this side speaks {limits.PROTOCOL_VERSION}", NackCode.INCOMPATIBLE
        )


def _payload(kind: type[Message], frames: Frames) -> memoryview:
    if (len(frames) == 2) != issubclass(kind, Bulk):
        raise RemoteProtocolError(f"{kind.type}: expected {1 + issubclass(kind, Bulk)} frames, got {len(frames)}")
    payload = memoryview(frames[1] if len(frames) == 2 else b"")
    if len(payload) > kind.payload_max:
        raise RemoteProtocolError(f"{kind.type}: a payload of {len(payload)} bytes", NackCode.TOO_LARGE)
    return payload


def _unpack(data: bytes) -> dict[str, Any]:
    try:
        table = msgpack.unpackb(
            data,
            strict_map_key=True,
            max_map_len=limits.METRICS_MAX,
            max_array_len=256,
            max_str_len=1024,
            max_bin_len=1024,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack's tree of errors has no common root below Exception
        raise RemoteProtocolError(f"the header is not msgpack within bounds ({type(error).__name__})") from error
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise RemoteProtocolError("the header is not a map with text keys")
    return table


def _header(message: Message) -> bytes:
    """The one encoding of a message's header."""
    table: dict[str, Any] = {"v": limits.PROTOCOL_VERSION, "t": message.type, "q": message.q}
    table |= {f.name: _plain(getattr(message, f.name)) for f in fields(message) if f.name not in ("q", "payload")}
    try:
        packed: bytes = msgpack.packb(table)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{message.type}: a field cannot be packed ({error})") from error
    return packed


def _plain(value: Any) -> Any:
    """Nested dataclasses as plain maps, metrics as float64; enumerations pack as their text."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return {name: float(number) for name, number in value.items()} if isinstance(value, Mapping) else value
