"""Every decoder of the wire, found by introspection: hostile bytes give typed errors, in bounded time and memory."""

from __future__ import annotations

import inspect
import json
import pkgutil
import random
import re
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module

import msgpack
import numpy as np
import pytest

import protocol
from protocol.assignment import Assignment, AssignmentKind, Handout, split_layouts
from protocol.codecs import Codec, decode_rows
from protocol.errors import RemoteProtocolError
from protocol.exported import ExportedAdapter
from protocol.header import decode, encode
from protocol.manifest import BaseModel, DenseTensor, LowRankModule, Manifest, Task, TaskKind
from protocol.messages import Chunk, Hello, Offer, Ping, Role
from protocol.payload import AdapterTensors, Layout
from protocol.session import Session
from protocol.ticket import Ticket
from protocol.typed import parse_json

D, T = "0" * 64, "0" * 32
MANIFEST = Manifest(
    base=BaseModel(name="tiny", fingerprint=D, architecture="Tiny", tokenizer_digest=D),
    task=Task(kind=TaskKind.CLASSIFICATION, labels=("no", "yes")),
    rank_max=8,
    low_rank=(LowRankModule(name="query", out_features=40, in_features=60),),
    dense=(DenseTensor(name="bias", shape=(20,)), DenseTensor(name="head", shape=(2, 40))),
)
LAYOUT = Layout.of(MANIFEST)
ADAPTER = AdapterTensors({t.name: np.ones(t.shape, np.float32) for t in LAYOUT.dense}, np.ones((4, 100), np.float32))
HANDOUT = Handout(digest=D, object_bytes=9, codec=Codec.BF16, slots=4)
ASSIGNMENT = Assignment(
    kind=AssignmentKind.TRAIN, run="run", round=1, version=0, token=T, rank=4, handout=HANDOUT, active=("query",)
)
REST = "1" * 64
SPLIT = replace(ASSIGNMENT, inactive=replace(HANDOUT, digest=REST))
ACTIVE, INACTIVE = (
    part.header(4, Codec.BF16) + LAYOUT.extract(LAYOUT.encode_body(ADAPTER, Codec.BF16), 4, Codec.BF16, part)
    for part in split_layouts(MANIFEST, ("query",))
)
TICKET = Ticket(
    run="run", endpoint="tcp://a:1", enrolment_endpoint="tcp://a:2", server_key="a" * 40, token=T, expires_at=1.5
)
EXPORTED = ExportedAdapter(MANIFEST, ADAPTER).to_files()
OFFER = Offer(q=3, upload=D, token=T, size=9, sha256=D, num_examples=2, metrics={"loss": 0.5, "ünï": -1e300})


def _header_of(data: bytes) -> object:
    return decode([data])


def _chunk_with(data: bytes) -> object:
    return decode([encode(Chunk(upload=D, offset=0, payload=b"x"))[0], data])


def _greeted(data: bytes) -> object:
    session = Session(Role.AGGREGATOR)
    session.receive(encode(Hello(version_min=2, version_max=2, sdk="s")))
    return session.receive([data])


def _rows(data: bytes) -> object:
    """Decodes as many rows as there are; the caller of ``decode_rows`` has compared the sizes."""
    found = np.frombuffer(data[: len(data) // 100 * 100], np.uint8).reshape(-1, 100)
    return [
        decode_rows(found, codec, groups)
        for codec, groups in ((Codec.FP32, [25]), (Codec.BF16, [20, 30]), (Codec.FP16, [50]), (Codec.INT8, [40, 52]))
    ]


def _body(codec: Codec, decoder: Callable[[bytes, int, Codec], object]) -> Callable[[bytes], object]:
    """Decodes a body of the size foretold, as ``Layout.decode_body`` and its like are given it."""
    size = LAYOUT.body_bytes(4, codec)
    return lambda data: decoder(data[:size].ljust(size, b"\0"), 4, codec)


def _exported(name: str) -> Callable[[bytes], object]:
    """Reads an exported folder one of whose files is this."""
    return lambda data: ExportedAdapter.of_files({**EXPORTED, name: data})


Decoder = tuple[Callable[[bytes], object], bytes]
DECODERS: dict[str, list[Decoder]] = {
    "header.decode": [(_header_of, bytes(encode(OFFER)[0])), (_chunk_with, b"payload")],
    "session.Session.receive": [(_greeted, bytes(encode(Ping())[0]))],
    "typed.parse_json": [(lambda data: parse_json(data, 1 << 20, "thing"), b'{"x": [1, 2.5, {"y": "z"}]}')],
    "manifest.Manifest.from_json": [(Manifest.from_json, MANIFEST.to_json())],
    "assignment.Assignment.from_json": [(Assignment.from_json, ASSIGNMENT.to_json())],
    "assignment.Assignment.decode_handout": [
        (lambda data: ASSIGNMENT.decode_handout(MANIFEST, lambda digest: data), LAYOUT.encode(ADAPTER, Codec.BF16)),
        (lambda data: SPLIT.decode_handout(MANIFEST, {D: data, REST: INACTIVE}.__getitem__), ACTIVE),
    ],
    "ticket.Ticket.from_json": [(Ticket.from_json, TICKET.to_json())],
    "payload.Layout.decode": [
        ((lambda data, codec=codec: LAYOUT.decode(data, 4, codec)), LAYOUT.encode(ADAPTER, codec)) for codec in Codec
    ],
    "payload.Layout.body": [((lambda data: LAYOUT.body(data, 4, Codec.BF16)), LAYOUT.encode(ADAPTER, Codec.BF16))],
    "payload.Layout.decode_body": [
        (_body(codec, LAYOUT.decode_body), LAYOUT.encode_body(ADAPTER, codec)) for codec in Codec
    ],
    "payload.Layout.decode_factors": [
        (_body(codec, partial(LAYOUT.decode_factors, name="query")), LAYOUT.encode_body(ADAPTER, codec))
        for codec in Codec
    ],
    "payload.Layout.decode_dense": [
        (_body(codec, lambda body, _, codec: LAYOUT.decode_dense(body, codec, "head")), bytes(100)) for codec in Codec
    ],
    "codecs.decode_rows": [(_rows, bytes(200))],
    "exported.ExportedAdapter.of_files": [
        (_exported("manifest.json"), EXPORTED["manifest.json"]),
        (_exported("adapter.safetensors"), EXPORTED["adapter.safetensors"]),
    ],
}
"""Each decoder, called as its callers do, and something that it takes."""
OURS = {
    "payload.PrefixDigests": "reads a body that this side stored",
    "payload.Layout.extract": "copies bytes of a body that this side stored",
    "payload.Layout.cut": "copies bytes of a body of known length and looks at none",
    "fingerprint.files_digest": "hashes files of this machine",
    **{f"messages.{name}": "the payload that a decoder has bounded" for name in ("Chunk", "Data", "Task")},
}
"""What takes bytes and is no decoder, and why."""

CASES = [
    pytest.param(*decoder, id=f"{name}-{n}") for name, found in DECODERS.items() for n, decoder in enumerate(found)
]


def taking_bytes() -> Iterator[str]:
    """Every public function, method and class of the package that is given bytes."""
    for module in pkgutil.iter_modules(protocol.__path__):
        public = import_module(f"protocol.{module.name}")
        for name in public.__all__:
            found = getattr(public, name)
            if inspect.isfunction(found) and _takes_bytes(found):
                yield f"{module.name}.{name}"
            if inspect.isclass(found) and found.__module__ == public.__name__:
                if _takes_bytes(found.__init__):
                    yield f"{module.name}.{name}"
                for method, value in vars(found).items():
                    function = getattr(value, "__func__", value)
                    if not method.startswith("_") and inspect.isfunction(function) and _takes_bytes(function):
                        yield f"{module.name}.{name}.{method}"


def _takes_bytes(function: Callable[..., object]) -> bool:
    given = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
    return any(re.search(r"\b(bytes|bytearray|memoryview|Buffer|Frames|uint8)\b", text) for text in given)


def test_every_decoder_is_known_here() -> None:
    assert set(taking_bytes()) == set(DECODERS) | set(OURS)


@pytest.mark.parametrize(("decoder", "whole"), CASES)
def test_a_decoder_takes_what_the_other_side_encoded(decoder: Callable[[bytes], object], whole: bytes) -> None:
    decoder(whole)


def mutants(whole: bytes, count: int) -> Iterator[bytes]:
    """Truncated, lengthened, bent, spliced and nested forms of something valid; the same ones on every run."""
    dice = random.Random(len(whole))
    alphabet = [b"\0", b"\xff", b"\x7f", b"\xc1", b"\x91", b"\x81\xa1x", b"\xdf\xff\xff\xff\xff", b"\xc0\x80", b'"']
    alphabet += [
        b"[",
        b"{",
        b"]}",
        b",",
        b"\\u",
        b"\\ud800",
        b"1e999",
        b"9" * 40,
        b"NaN",
        b"true",
        b"null",
        b"\xed\xa0",
    ]
    for _ in range(count):
        made = bytearray(whole)
        for _ in range(dice.choice([1, 1, 2, 5])):
            start = dice.randrange(len(made) + 1)
            end = min(len(made), start + dice.choice([0, 1, 1, 2, 8, 1000]))
            made[start:end] = dice.choice(
                [b"", dice.choice(alphabet), dice.randbytes(end - start), made[start:end] * 2, bytes(reversed(made))]
            )
        yield bytes(made)


def outcome(decoder: Callable[[bytes], object], data: bytes) -> str:
    """Whether it was taken or refused; anything else that a decoder raises fails the test."""
    try:
        decoder(data)
    except RemoteProtocolError as error:
        assert str(error).encode()
        assert len(str(error)) < 20_000
        return "refused"
    return "taken"


@pytest.mark.parametrize(("decoder", "whole"), CASES)
def test_mutated_bytes_are_taken_or_refused_by_a_typed_error(decoder: Callable[[bytes], object], whole: bytes) -> None:
    assert {outcome(decoder, data) for data in mutants(whole, 200)} <= {"taken", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "whole"), CASES)
def test_very_many_mutants_are_taken_or_refused(decoder: Callable[[bytes], object], whole: bytes) -> None:
    assert {outcome(decoder, data) for data in mutants(whole, 50_000)} <= {"taken", "refused"}


def safetensors(entries: str) -> bytes:
    """A payload with this header and no body."""
    return len(entries).to_bytes(8, "little") + entries.encode()


_SIZE = 1 << 18
_ENTRY = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
BOMBS = {
    "nested lists": b"\x91" * _SIZE,
    "nested maps": b"\x81\xa1x" * (_SIZE // 3),
    "empty maps": b"\xdd" + (_SIZE).to_bytes(4, "big") + b"\x80" * _SIZE,
    "a map that claims 2**32 entries": b"\xdf\xff\xff\xff\xff" * (_SIZE // 5),
    "a list that claims 2**32 entries": b"\xdd\xff\xff\xff\xff" * 2,
    "bytes that claim 4 GiB": b"\x81\xa1v\xc6\xff\xff\xff\xff" + bytes(2000),
    "a text that claims 4 GiB": b"\x81\xa1v\xdb\xff\xff\xff\xff" + b"x" * 2000,
    "an extension that claims 4 GiB": b"\x81\xa1v\xc9\xff\xff\xff\xff\x01" + bytes(2000),
    "a map of many numbers": msgpack.packb({"v": 2, "t": "REPORT", "metrics": {str(n): n for n in range(300)}}),
    "overlong UTF-8 in a header": b"\x83\xa1v\x02\xa1t\xa2\xc0\x80\xa1q\x00",
    "JSON, nested lists": b'{"x":' + b"[" * _SIZE,
    "JSON, nested maps": b'{"x":' * (_SIZE // 5),
    "JSON, empty maps": b'{"x":[' + b"{}," * (_SIZE // 3) + b"{}]}",
    "JSON, empty lists": b'{"x":[' + b"[]," * (_SIZE // 3) + b"[]]}",
    "JSON, many keys": json.dumps({f"{n:x}": n for n in range(_SIZE // 16)}).encode(),
    "JSON, a key again and again": b"{" + b'"x":0,' * (_SIZE // 6) + b'"x":0}',
    "JSON, a number of many digits": b'{"format":' + b"9" * _SIZE + b"}",
    "JSON, a number just short enough": b'{"format":' + b"9" * 4300 + b"}",
    "JSON, a great exponent": b'{"format":1e' + b"9" * 999 + b"}",
    "JSON, overlong UTF-8": b'{"format":"\xc0\x80"}',
    "JSON, surrogates": rb'{"format":"' + rb"\ud800" * (_SIZE // 6) + b'"}',
    "JSON, UTF-32": '{"format": "x"}'.encode("utf-32"),
    "safetensors, very many tensors": safetensors("{" + ",".join(_ENTRY % n for n in range(_SIZE // 50)) + "}"),
    "safetensors, a shape of many axes": safetensors('{"bias":{"dtype":"F32","shape":[' + "1," * 99_999 + "1]}}"),
    "safetensors, a header of 2**63 bytes": (1 << 63).to_bytes(8, "little") + b"{}",
    "safetensors, an offset of 2**64": safetensors('{"bias":{"data_offsets":[0,18446744073709551616]}}'),
    "zeros": bytes(_SIZE),
    "ones": b"\xff" * _SIZE,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_bytes_cost_more_memory_or_time_than_their_length_allows(bomb: str) -> None:
    data = BOMBS[bomb]
    for name, found in DECODERS.items():
        for decoder, _ in found:
            tracemalloc.start()
            start = time.process_time()
            outcome(decoder, data)
            spent_s, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 60 * len(data) + (512 << 10), f"{name}: {peak} bytes for {len(data)}"
            assert spent_s < 2.0, name
