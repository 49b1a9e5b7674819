"""Untrusted maps: each typed reader takes what it says and refuses all else with the field's name."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from enum import StrEnum

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import RemoteProtocolError
from protocol.typed import Fields, parse_json


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


READERS: dict[str, Callable[[Fields], object]] = {
    "text": lambda f: f.text("x"),
    "optional_text": lambda f: f.optional_text("x"),
    "texts": lambda f: f.texts("x", 3),
    "digest": lambda f: f.digest("x"),
    "optional_digest": lambda f: f.optional_digest("x"),
    "token": lambda f: f.token("x"),
    "optional_token": lambda f: f.optional_token("x"),
    "flag": lambda f: f.flag("x"),
    "integer": lambda f: f.integer("x"),
    "optional_integer": lambda f: f.optional_integer("x"),
    "integers": lambda f: f.integers("x", count=3, maximum=9),
    "number": lambda f: f.number("x"),
    "optional_number": lambda f: f.optional_number("x", minimum=0.0),
    "member": lambda f: f.member("x", Colour),
    "members": lambda f: f.members("x", Colour),
    "numbers": lambda f: f.numbers("x", 3),
    "options": lambda f: f.options("x", 3),
    "table": lambda f: f.table("x"),
    "optional_table": lambda f: f.optional_table("x"),
    "tables": lambda f: f.tables("x", 3),
}
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**1024, float("inf"), float("nan"), -0.0])
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["\ud800", "red", "0" * 32, "0" * 64, "0" * 64 + "\n", "x" * 600])
    | st.binary(max_size=9)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
)


def test_every_reader_is_tried_here() -> None:
    public = {name for name in vars(Fields) if not name.startswith("_")}
    assert public == set(READERS) | {"optional_null", "finish"}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_returns_or_names_the_field_it_refuses(name: str) -> None:
    @settings(max_examples=50)
    @given(VALUES)
    def check(value: object) -> None:
        try:
            READERS[name](Fields({"x": value}, "thing"))
        except RemoteProtocolError as error:
            assert "thing" in str(error)
            assert "'x'" in str(error) or ": x" in str(error)
            assert len(str(error)) < 1000
            assert str(error).encode()

    check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("integer", True),
        ("integer", 1.0),
        ("integer", -1),
        ("integer", (1 << 62) + 1),
        ("number", False),
        ("number", float("nan")),
        ("number", float("inf")),
        ("number", 10**400),
        ("number", "1"),
        ("flag", 1),
        ("flag", None),
        ("text", "\udfff"),
        ("text", b"bytes"),
        ("text", "x" * 513),
        ("texts", ["a", "b", "c", "d"]),
        ("texts", "abc"),
        ("texts", ["a", "\ud800"]),
        ("digest", "A" * 64),
        ("digest", "0" * 64 + "\n"),
        ("digest", "٠" * 64),
        ("token", "0" * 33),
        ("token", "٠" * 32),
        ("integers", [0]),
        ("integers", [10]),
        ("integers", [True]),
        ("member", "green"),
        ("member", ["red"]),
        ("member", {}),
        ("members", ["red", "red"]),
        ("numbers", {"a": "1"}),
        ("numbers", {"\ud800": 1.0}),
        ("numbers", {1: 1.0}),
        ("table", []),
        ("tables", [{}, 1]),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(name: str, value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="thing"):
        READERS[name](Fields({"x": value}, "thing"))


def test_a_missing_and_a_surplus_field_are_named() -> None:
    with pytest.raises(RemoteProtocolError, match="'x' is missing"):
        Fields({}, "thing").text("x")
    with pytest.raises(RemoteProtocolError, match="unknown field 'y'"):
        Fields({"y": 1}, "thing").finish()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=5), st.booleans())
def test_a_plain_object_is_read_whatever_its_texts_hold(table: dict[str, object], ascii_only: bool) -> None:
    data = json.dumps(table, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        fields = parse_json(data, 1 << 20, "thing")
    except RemoteProtocolError:
        assert not ascii_only  # a raw surrogate is not UTF-8
        return
    for key in table:
        fields.optional_null(key)


@settings(max_examples=150)
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"\xff\xfe{\x00}\x00")
@example('{"x": 1}'.encode("utf-16"))
@example(b"\xef\xbb\xbf{}")
@example(b'{"x": "\xed\xa0\x80"}')
def test_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        fields = parse_json(data, 1000, "thing")
    except RemoteProtocolError as error:
        assert "thing" in str(error)
    else:
        assert isinstance(json.loads(data.decode()), dict)
        assert isinstance(fields, Fields)


@pytest.mark.parametrize(
    "data",
    [
        b'{"x": 1, "x": 1}',
        b'{"y": {"x": 1, "x": 1}}',
        b'{"x": NaN}',
        b'{"x": -Infinity}',
        b'{"x": ' + b"9" * 100_000 + b"}",
        b'{"x": ' + b"[" * 7 + b"]" * 7 + b"}",
        b"[" * 100_000,
        b'{"x":' * 100_000,
        b"[]",
        b"1",
        b"",
        b"{",
        b'{"x": 1} {}',
        b"{'x': 1}",
    ],
)
def test_json_that_is_not_one_plain_object_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="thing"):
        parse_json(data, 1 << 20, "thing")


def test_an_exponent_beyond_float64_is_no_number() -> None:
    with pytest.raises(RemoteProtocolError, match="finite"):
        parse_json(b'{"x": 1e999999}', 100, "thing").number("x")


def test_an_escaped_surrogate_is_refused_where_it_is_read() -> None:
    with pytest.raises(RemoteProtocolError, match="surrogates"):
        parse_json(rb'{"x": "\ud800"}', 100, "thing").text("x")
    assert parse_json(rb'{"x": "\ud83d\ude00"}', 100, "thing").text("x") == "\N{GRINNING FACE}"


def test_brackets_inside_strings_are_not_nesting() -> None:
    assert parse_json(rb'{"x": "[[[[[[[[[[\"[[["}', 100, "thing").text("x") == '[[[[[[[[[["[[['


def test_a_document_above_its_bound_is_refused_unread() -> None:
    with pytest.raises(RemoteProtocolError, match="at most 10"):
        parse_json(b"{" * 11, 10, "thing")


@pytest.mark.parametrize("unit", [b'\\"', b'"', b"\\", b'""', b"a", b'"\\', b"\n\\"])
def test_checking_the_nesting_takes_time_in_proportion_to_the_length(unit: bytes) -> None:
    start = time.process_time()
    with pytest.raises(RemoteProtocolError):
        parse_json(b'{"x":"' + unit * (1 << 18), 8 << 20, "thing")
    assert time.process_time() - start < 2.0  # quadratic: minutes


_MEMORY = """
import resource, sys
from protocol.errors import RemoteProtocolError
from protocol.typed import parse_json
data = {"empty objects": b'{"x":[' + b"{}," * (1 << 21) + b"{}]}",
        "empty lists": b'{"x":[' + b"[]," * (1 << 21) + b"[]]}",
        "keys": b'{"x":[' + b'{"a":1},' * (1 << 20) + b"{}]}",
        "brackets": b"[" * (8 << 20)}
for name, document in data.items():
    try:
        parse_json(document[: 8 << 20], 8 << 20, name)
    except RemoteProtocolError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_hostile_document_of_the_largest_size_stays_within_bounded_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 700  # MiB
