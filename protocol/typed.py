"""Reading untrusted maps: every field typed, bounded and accounted for.

Both formats a peer may send, msgpack headers and JSON documents, decode to plain maps; :class:`Fields` turns those
into values or a :class:`~protocol.errors.RemoteProtocolError` that names the field. ``bool`` is no integer here, NaN
no number, and a key nobody asked for is an error.
"""

from __future__ import annotations

import json
import math
import re
from enum import StrEnum
from typing import Any, TypeVar

from protocol import limits
from protocol.errors import RemoteProtocolError

__all__ = ["Fields", "Option", "parse_json"]

E = TypeVar("E", bound=StrEnum)

Option = bool | int | float | str | tuple[str, ...] | tuple[int, ...] | None
"""A setting whose type only its user knows."""

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_TOKEN = re.compile(r"[0-9a-f]{32}\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_DEPTH_MAX = 6
# Possessive, and taking an unclosed string to the end: one pass over the input, whatever it holds.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NESTING = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def parse_json(data: bytes, limit: int, what: str) -> Fields:
    """Decodes a JSON object of a peer.

    Args:
        data: UTF-8 JSON.
        limit: Bound on ``len(data)``, in bytes, checked first.
        what: Name of the document, for messages.

    Raises:
        RemoteProtocolError: Too long, not JSON, not an object, nested too deep, or with a duplicate key.
    """
    if len(data) > limit:
        raise RemoteProtocolError(f"{what}: {len(data)} bytes, at most {limit} are allowed")
    _check_depth(data, what)
    try:
        # Decoded here: given bytes, json.loads would take UTF-16 and UTF-32 too, and let surrogates pass.
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError(f"{what}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise RemoteProtocolError(f"{what}: expected an object, got {type(value).__name__}")
    return Fields(value, what)


def _check_depth(data: bytes, what: str) -> None:
    """Bounds nesting before the parser recurses; brackets inside strings do not count."""
    depth = 0
    for byte in _JSON_STRING.sub(b"", data):
        depth += _NESTING.get(byte, 0)
        if depth > _DEPTH_MAX:
            raise RemoteProtocolError(f"{what}: nested deeper than {_DEPTH_MAX}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("duplicate key")
    return table


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _is_text(value: object, limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit and not _SURROGATE.search(value)


class Fields:
    """Takes the fields of one untrusted map, one by one.

    Args:
        table: The decoded map.
        what: Name of the message or document, for error messages.
    """

    def __init__(self, table: dict[str, Any], what: str) -> None:
        self._table = dict(table)
        self._what = what

    def finish(self) -> None:
        """Raises if a field is left that nobody took."""
        if self._table:
            raise RemoteProtocolError(f"{self._what}: unknown field {str(next(iter(self._table)))[:80]!r}")

    def optional_null(self, key: str) -> bool:
        """Takes the field if it is null, and says whether it was."""
        if key in self._table and self._table[key] is None:
            del self._table[key]
            return True
        return False

    def text(self, key: str, *, limit: int = limits.NAME_MAX_CHARS) -> str:
        """A string of at most ``limit`` characters that UTF-8 can hold."""
        value = self._take(key)
        if not _is_text(value, limit):
            raise self._fault(key, f"a string of at most {limit} characters, without surrogates", value)
        return str(value)

    def optional_text(self, key: str, *, limit: int = limits.NAME_MAX_CHARS) -> str | None:
        """A string or null."""
        return None if self.optional_null(key) else self.text(key, limit=limit)

    def texts(self, key: str, count: int) -> list[str]:
        """At most ``count`` strings."""
        return [Fields({key: item}, self._what).text(key) for item in self._items(key, count)]

    def digest(self, key: str) -> str:
        """64 lower-case hex digits."""
        value = self._take(key)
        if not isinstance(value, str) or not _DIGEST.match(value):
            raise self._fault(key, "64 lower-case hex digits", value)
        return value

    def optional_digest(self, key: str) -> str | None:
        """64 lower-case hex digits or null."""
        return None if self.optional_null(key) else self.digest(key)

    def token(self, key: str) -> str:
        """32 lower-case hex digits."""
        value = self._take(key)
        if not isinstance(value, str) or not _TOKEN.match(value):
            raise self._fault(key, "32 lower-case hex digits", value)
        return value

    def optional_token(self, key: str) -> str | None:
        """32 lower-case hex digits or null."""
        return None if self.optional_null(key) else self.token(key)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._take(key)
        if not isinstance(value, bool):
            raise self._fault(key, "true or false", value)
        return value

    def integer(self, key: str, *, minimum: int = 0, maximum: int = 1 << 62) -> int:
        """A whole number in ``minimum..maximum``."""
        value = self._take(key)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self._fault(key, f"a whole number in {minimum}..{maximum}", value)
        return value

    def integers(self, key: str, *, count: int, maximum: int) -> list[int]:
        """At most ``count`` positive whole numbers."""
        items = self._items(key, count)
        return [Fields({key: item}, self._what).integer(key, minimum=1, maximum=maximum) for item in items]

    def number(self, key: str, *, minimum: float = -math.inf, maximum: float = math.inf) -> float:
        """A finite number in ``minimum..maximum``."""
        value = self._take(key)
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not plain or not (abs(value) < 2**1000 and math.isfinite(value) and minimum <= value <= maximum):
            raise self._fault(key, f"a finite number in {minimum}..{maximum}", value)
        return float(value)

    def optional_number(self, key: str, *, minimum: float = -math.inf, maximum: float = math.inf) -> float | None:
        """A finite number or null."""
        return None if self.optional_null(key) else self.number(key, minimum=minimum, maximum=maximum)

    def optional_integer(self, key: str, *, minimum: int = 0, maximum: int = 1 << 62) -> int | None:
        """A whole number or null."""
        return None if self.optional_null(key) else self.integer(key, minimum=minimum, maximum=maximum)

    def member(self, key: str, kind: type[E]) -> E:
        """One member of an enumeration."""
        value = self._take(key)
        try:
            return kind(value)
        except ValueError as error:
            raise self._fault(key, "one of " + ", ".join(kind), value) from error

    def members(self, key: str, kind: type[E]) -> list[E]:
        """Members of an enumeration, each at most once."""
        found = [Fields({key: item}, self._what).member(key, kind) for item in self._items(key, len(kind))]
        if len(set(found)) != len(found):
            raise self._fault(key, "no member twice", found)
        return found

    def numbers(self, key: str, count: int) -> dict[str, float]:
        """A map of at most ``count`` names to finite numbers."""
        value = self._take(key)
        if not isinstance(value, dict) or len(value) > count:
            raise self._fault(key, f"a map of at most {count} numbers", value)
        inner = Fields(value, f"{self._what}: {key}")
        for name in value:
            if not _is_text(name, limits.NAME_MAX_CHARS):
                raise self._fault(key, f"names of at most {limits.NAME_MAX_CHARS} characters", name)
        return {name: inner.number(name) for name in value}

    def options(self, key: str, count: int) -> dict[str, Option]:
        """A map of at most ``count`` names to settings; a list holds at most as many texts, or whole numbers."""
        value = self._take(key)
        if not isinstance(value, dict) or len(value) > count:
            raise self._fault(key, f"a map of at most {count} settings", value)
        inner = Fields(value, f"{self._what}: {key}")
        for name in value:
            if not _is_text(name, limits.NAME_MAX_CHARS):
                raise self._fault(key, f"names of at most {limits.NAME_MAX_CHARS} characters", name)
        return {name: inner._option(name, value[name], count) for name in value}

    def _option(self, key: str, value: object, count: int) -> Option:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, list):
            return self._options_alike(key, count)
        if isinstance(value, str):
            return self.text(key)
        if isinstance(value, int):
            return self.integer(key, minimum=-(1 << 62))
        return self.number(key)

    def _options_alike(self, key: str, count: int) -> tuple[str, ...] | tuple[int, ...]:
        """At most ``count`` texts, or as many whole numbers: what the first is, all have to be."""
        items = [(item, Fields({key: item}, self._what)) for item in self._items(key, count)]
        if items and isinstance(items[0][0], int):
            return tuple(each.integer(key, minimum=-(1 << 62)) for _, each in items)
        return tuple(each.text(key) for _, each in items)

    def table(self, key: str) -> Fields:
        """A nested map."""
        value = self._take(key)
        if not isinstance(value, dict):
            raise self._fault(key, "a map", value)
        return Fields(value, f"{self._what}: {key}")

    def optional_table(self, key: str) -> Fields | None:
        """A nested map or null."""
        return None if self.optional_null(key) else self.table(key)

    def tables(self, key: str, count: int) -> list[Fields]:
        """At most ``count`` nested maps."""
        return [Fields({key: i}, f"{self._what}: {key}[{n}]").table(key) for n, i in enumerate(self._items(key, count))]

    def _items(self, key: str, count: int) -> list[Any]:
        value = self._take(key)
        if not isinstance(value, list) or len(value) > count:
            raise self._fault(key, f"a list of at most {count}", value)
        return value

    def _take(self, key: str) -> Any:
        if key not in self._table:
            raise RemoteProtocolError(f"{self._what}: field {key!r} is missing")
        return self._table.pop(key)

    def _fault(self, key: str, expected: str, value: object) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self._what}: field {key!r}: expected {expected}, got {str(value)[:80]!r}")
