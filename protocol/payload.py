"""Adapters as they travel: a canonical safetensors file whose lower ranks are prefixes of its higher ones.

The body is the dense tensors in manifest order, then one tensor ``slots`` of shape ``[r, Σ(m+n)]``: row ``j`` holds,
for each low-rank module in order, column ``j`` of ``B̂`` and then row ``j`` of ``A``. A hand-out of rank ``r`` is the
header for ``r`` followed by a prefix of the body stored once per version. The same layout carries an update, its
values then being ``(s·dB, dA)`` and dense differences; a factor that an assignment freezes is left out of it.

A receiver knows the layout beforehand, from manifest and assignment; the header that arrives has to equal the one it
computes, byte for byte, before a single value is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from protocol.codecs import Codec, decode_rows, encode_rows, row_bytes
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError
from protocol.manifest import DenseTensor, LowRankModule, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AdapterTensors", "Buffer", "Factor", "Layout", "PrefixDigests"]

Buffer = bytes | bytearray | memoryview
"""What holds an encoded object."""


class Factor(StrEnum):
    """The two factors of a low-rank module, ``ΔW = s·B·A``."""

    A = "A"
    """``[r, n]``: what comes in."""
    B = "B"
    """``[m, r]``: what goes out."""


@dataclass(frozen=True)
class AdapterTensors:
    """An adapter, or the change of one, outside the wire.

    The factors are scale-free: ``slots`` holds ``B̂ = s·B`` and ``A``, so that ``ΔW = B̂·A`` on every device.
    """

    dense: Mapping[str, NDArray[np.float32]]
    """Dense tensors by name: offsets from base or initializer (hand-out), or differences (update)."""
    slots: NDArray[np.float32]
    """``[r, Σ(m+n)]``, slot-major."""

    @property
    def rank(self) -> int:
        """Number of slots."""
        return int(self.slots.shape[0])


@dataclass(frozen=True)
class Layout:
    """Where each trainable lies in a payload.

    Args:
        low_rank: The low-rank modules present, in wire order.
        dense: The dense tensors present, in wire order.
        frozen: Factors left out of every module: they read as zero, having not changed.

    Example:
        >>> layout = Layout((LowRankModule(name="q", out_features=2, in_features=3),), ())
        >>> layout.width, layout.object_bytes(4, Codec.BF16) - layout.header(4, Codec.BF16).__len__()
        (5, 40)
    """

    low_rank: tuple[LowRankModule, ...]
    dense: tuple[DenseTensor, ...]
    frozen: tuple[Factor, ...] = ()
    _spans: dict[str, _Span] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spans, start = {}, 0
        for index, module in enumerate(self.low_rank):
            b = 0 if Factor.B in self.frozen else module.out_features
            a = 0 if Factor.A in self.frozen else module.in_features
            spans[module.name] = _Span(index, start, b, a, module)
            start += b + a
        object.__setattr__(self, "_spans", spans)

    @classmethod
    def of(cls, manifest: Manifest, active: Iterable[str] | None = None, frozen: tuple[Factor, ...] = ()) -> Self:
        """The layout of a run, or of the trainables that one assignment makes active.

        Args:
            manifest: The run's universe.
            active: Names to keep, in any order; None keeps all.
            frozen: Factors to leave out of every module.

        Raises:
            RemoteProtocolError: A name is not in the manifest.
        """
        if active is None:
            return cls(manifest.low_rank, manifest.dense, frozen)
        keep = set(active)
        unknown = keep.difference(manifest.names)
        if unknown:
            raise RemoteProtocolError(f"{min(unknown)!r} is not a trainable of this run", NackCode.SHAPE)
        return cls(
            tuple(m for m in manifest.low_rank if m.name in keep),
            tuple(t for t in manifest.dense if t.name in keep),
            frozen,
        )

    @cached_property
    def width(self) -> int:
        """``Σ(m+n)``: values in one slot; less where a factor is frozen."""
        return sum(self._groups)

    def factors(self, slots: NDArray[np.float32], name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Views of one module's factors.

        Args:
            slots: ``[r, Σ(m+n)]``.
            name: Module name.

        Returns:
            ``B̂`` ``[m, r]`` and ``A`` ``[r, n]``; writing to them writes to ``slots``. A frozen factor is zeros that
            cannot be written to.
        """
        span = self._spans[name]
        middle = span.start + span.b
        return span.whole(slots[:, span.start : middle], slots[:, middle : middle + span.a])

    def zeros(self, rank: int) -> AdapterTensors:
        """All-zero tensors of this layout."""
        dense = {t.name: np.zeros(t.shape, np.float32) for t in self.dense}
        return AdapterTensors(dense, np.zeros((rank, self.width), np.float32))

    def header(self, rank: int, codec: Codec) -> bytes:
        """The canonical safetensors header: its length (u64, little endian) and the JSON, padded to 8 bytes."""
        table: dict[str, Any] = {}
        start = 0
        for tensor in self.dense:
            size = self._dense_bytes(tensor, codec)
            shape = list(tensor.shape) if codec is not Codec.INT8 else [size]
            table[tensor.name] = _entry(codec, shape, start, size)
            start += size
        if self.low_rank:
            size = rank * self._slot_bytes(codec)
            shape = [rank, self.width if codec is not Codec.INT8 else self._slot_bytes(codec)]
            table[_SLOTS] = _entry(codec, shape, start, size)
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def body_bytes(self, rank: int, codec: Codec) -> int:
        """Bytes of the body at this rank."""
        dense = sum(self._dense_bytes(tensor, codec) for tensor in self.dense)
        return dense + rank * self._slot_bytes(codec) * bool(self.low_rank)

    def object_bytes(self, rank: int, codec: Codec) -> int:
        """Bytes of the whole object at this rank: what travels."""
        return len(self.header(rank, codec)) + self.body_bytes(rank, codec)

    def encode(self, tensors: AdapterTensors, codec: Codec) -> bytes:
        """Encodes the whole object.

        Args:
            tensors: Values in this layout.
            codec: Number format.

        Raises:
            LocalProtocolError: A tensor is missing or misshapen, or a value is not finite.
        """
        return self.header(tensors.rank, codec) + self.encode_body(tensors, codec)

    def encode_body(self, tensors: AdapterTensors, codec: Codec) -> bytes:
        """Encodes the body alone; its prefixes are the bodies of the lower ranks."""
        parts = []
        for tensor in self.dense:
            value = tensors.dense.get(tensor.name)
            if value is None or value.shape != tensor.shape:
                got = "nothing" if value is None else str(value.shape)
                raise LocalProtocolError(f"{tensor.name!r}: expected shape {tensor.shape}, got {got}")
            parts.append(encode_rows(value.reshape(_rows(tensor)), codec, [_rows(tensor)[1]]).tobytes())
        if tensors.slots.shape[1:] != (self.width,):
            raise LocalProtocolError(f"slots: expected {self.width} values each, got {tensors.slots.shape[1:]}")
        if self.low_rank:
            parts.append(encode_rows(tensors.slots, codec, self._groups).tobytes())
        return b"".join(parts)

    def decode(self, data: Buffer, rank: int, codec: Codec) -> AdapterTensors:
        """Decodes a whole object.

        Args:
            data: What :meth:`encode` wrote, from a peer that need not be trusted.
            rank: The rank that the assignment named.
            codec: The codec that the assignment named.

        Raises:
            RemoteProtocolError: ``SHAPE``, if length or header differ from what manifest and assignment imply (the
                message names the first tensor that differs); ``NON_FINITE``, if a value is.
        """
        return self.decode_body(self.body(data, rank, codec), rank, codec)

    def body(self, data: Buffer, rank: int, codec: Codec) -> memoryview:
        """The body of a whole object, once header and length are what they must be; no value is looked at.

        Args:
            data: As in :meth:`decode`.
            rank: As in :meth:`decode`.
            codec: As in :meth:`decode`.

        Raises:
            RemoteProtocolError: ``SHAPE``, as :meth:`decode`.
        """
        header = self.header(rank, codec)
        if memoryview(data)[: len(header)] != header:
            got = bytes(memoryview(data)[: 2 * len(header) + 1024])
            raise RemoteProtocolError(self._difference(got, header), NackCode.SHAPE)
        body = memoryview(data)[len(header) :]
        if len(body) != self.body_bytes(rank, codec):
            raise RemoteProtocolError(
                f"the body has {len(body)} bytes, manifest and rank {rank} imply {self.body_bytes(rank, codec)}",
                NackCode.SHAPE,
            )
        return body

    def decode_factors(
        self, body: Buffer, rank: int, codec: Codec, name: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One module's factors out of a body of known length; of the rest not a byte is read.

        Args:
            body: A stored body, or :meth:`body` of an object.
            rank: Slots in the body.
            codec: Number format.
            name: Module name.

        Returns:
            ``B̂`` ``[m, r]`` and ``A`` ``[r, n]``, as :meth:`factors` of the decoded body gives them.

        Raises:
            RemoteProtocolError: ``NON_FINITE``, if a value of this module is.
        """
        span = self._spans[name]
        decoded = decode_rows(self.cut(body, rank, codec, name), codec, span.groups)
        return span.whole(decoded[:, : span.b], decoded[:, span.b :])

    def cut(self, body: Buffer, rank: int, codec: Codec, name: str) -> NDArray[np.uint8]:
        """One module's bytes out of a body of known length; of the rest not a byte is read.

        Args:
            body: As in :meth:`decode_factors`.
            rank: Slots in the body.
            codec: Number format.
            name: Module name.

        Returns:
            The body of :meth:`only` this module, a row a slot.
        """
        span = self._spans[name]
        slot, before = self._slot_bytes(codec), self.body_bytes(0, codec)
        rows = np.frombuffer(body, np.uint8)[before : before + rank * slot].reshape(rank, slot)
        size = sum(span.groups) * codec.value_bytes
        if codec is Codec.INT8:  # all scales of a slot stand before its values
            scales = 4 * len(span.groups)
            scale, first = scales * span.index, 4 * len(self._groups) + span.start
            return np.hstack([rows[:, scale : scale + scales], rows[:, first : first + size]])
        first = span.start * codec.value_bytes
        return np.ascontiguousarray(rows[:, first : first + size])

    def extract(self, body: Buffer, rank: int, codec: Codec, part: Layout) -> bytes:
        """The body of some of this layout's trainables, bit for bit; nothing is decoded.

        Args:
            body: As in :meth:`decode_factors`.
            rank: As in :meth:`decode_factors`.
            codec: As in :meth:`decode_factors`.
            part: The layout of those trainables, with the same factors frozen.
        """
        pieces = [self._dense_cut(body, codec, tensor.name)[1].tobytes() for tensor in part.dense]
        if part.low_rank:
            cuts = [(self.cut(body, rank, codec, module.name), self._spans[module.name]) for module in part.low_rank]
            scales = [4 * len(span.groups) if codec is Codec.INT8 else 0 for _, span in cuts]
            heads = [cut[:, :size] for (cut, _), size in zip(cuts, scales, strict=True)]
            values = [cut[:, size:] for (cut, _), size in zip(cuts, scales, strict=True)]
            pieces.append(np.hstack([*heads, *values]).tobytes())
        return b"".join(pieces)

    def join(self, parts: Iterable[tuple[Layout, AdapterTensors]]) -> AdapterTensors:
        """Puts together what parts of this layout hold; what none of them has reads as zero.

        Args:
            parts: Layouts of some of the trainables, with what they hold; all of one rank.
        """
        parts = list(parts)
        joined = self.zeros(max(tensors.rank for _, tensors in parts))
        dense = dict(joined.dense)
        for layout, tensors in parts:
            dense.update(tensors.dense)
            for module in layout.low_rank:
                for whole, own in zip(
                    self.factors(joined.slots, module.name), layout.factors(tensors.slots, module.name), strict=True
                ):
                    whole[:] = own
        return AdapterTensors(dense, joined.slots)

    def only(self, name: str) -> Layout:
        """The layout of one low-rank module alone; of nothing, if this one lacks it."""
        return Layout(tuple(module for module in self.low_rank if module.name == name), (), self.frozen)

    def decode_dense(self, body: Buffer, codec: Codec, name: str) -> NDArray[np.float32]:
        """One dense tensor out of a body of known length.

        Args:
            body: As in :meth:`decode_factors`.
            codec: Number format.
            name: Tensor name.

        Raises:
            RemoteProtocolError: ``NON_FINITE``, if a value of this tensor is.
        """
        tensor, cut = self._dense_cut(body, codec, name)
        count, width = _rows(tensor)
        return decode_rows(np.ascontiguousarray(cut.reshape(count, -1)), codec, [width]).reshape(tensor.shape)

    def decode_body(self, body: Buffer, rank: int, codec: Codec) -> AdapterTensors:
        """Decodes a body of known length, such as a stored hand-out's prefix."""
        raw = np.frombuffer(body, np.uint8)
        dense = {tensor.name: self.decode_dense(body, codec, tensor.name) for tensor in self.dense}
        start = self.body_bytes(0, codec)
        if not self.low_rank:
            return AdapterTensors(dense, np.zeros((0, 0), np.float32))
        size = rank * self._slot_bytes(codec)
        part = np.ascontiguousarray(raw[start : start + size]).reshape(rank, self._slot_bytes(codec))
        return AdapterTensors(dense, decode_rows(part, codec, self._groups))

    @cached_property
    def _groups(self) -> Sequence[int]:
        return [size for span in self._spans.values() for size in span.groups]

    def _slot_bytes(self, codec: Codec) -> int:
        return row_bytes(codec, self._groups)

    def _dense_cut(self, body: Buffer, codec: Codec, name: str) -> tuple[DenseTensor, NDArray[np.uint8]]:
        """One dense tensor, and its bytes out of a body of known length."""
        start = 0
        for tensor in self.dense:
            size = self._dense_bytes(tensor, codec)
            if tensor.name == name:
                return tensor, np.frombuffer(body, np.uint8)[start : start + size]
            start += size
        raise KeyError(name)

    def _dense_bytes(self, tensor: DenseTensor, codec: Codec) -> int:
        count, width = _rows(tensor)
        return count * row_bytes(codec, [width])

    def _difference(self, got: bytes, header: bytes) -> str:
        """Says in a peer's terms why a header is not the expected one."""
        expected = json.loads(header[8:])
        try:
            size = int.from_bytes(got[:8], "little")
            found = json.loads(got[8 : 8 + size])
            for name in list(expected) + list(found):
                if found.get(name) != expected.get(name):
                    want, have = expected.get(name, "no such tensor"), found.get(name, "nothing")
                    return f"payload header: {str(name)[:80]!r}: expected {want}, got {have!r:.160}"
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass
        return f"payload header: not the canonical one for {len(expected)} tensors ({', '.join(list(expected)[:3])} …)"


class PrefixDigests:
    """SHA-256 of every rank's object over one stored body, each byte hashed once per rank asked for.

    Args:
        layout: Layout of the body.
        body: The whole stored body.
        slots: How many slots it holds.
        codec: Number format.
    """

    def __init__(self, layout: Layout, body: Buffer, slots: int, codec: Codec) -> None:
        self._layout, self._body, self._slots, self._codec = layout, memoryview(body), slots, codec
        self._known: dict[int, str] = {}

    def of(self, rank: int) -> str:
        """Digest, hex, of the object at this rank.

        Raises:
            LocalProtocolError: More slots are asked for than the body holds.
        """
        if not 0 <= rank <= self._slots:
            raise LocalProtocolError(f"rank {rank} is not in 0..{self._slots}")
        if rank not in self._known:
            digest = hashlib.sha256(self._layout.header(rank, self._codec))
            digest.update(self._body[: self._layout.body_bytes(rank, self._codec)])
            self._known[rank] = digest.hexdigest()
        return self._known[rank]


_SLOTS = "slots"


@dataclass(frozen=True)
class _Span:
    """One module's share of a slot: ``b`` values of ``B̂`` from ``start`` on, then ``a`` of ``A``; 0 where frozen."""

    index: int
    start: int
    b: int
    a: int
    module: LowRankModule

    @property
    def groups(self) -> list[int]:
        return [size for size in (self.b, self.a) if size]

    def whole(self, b: NDArray[np.float32], a: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``B̂`` ``[m, r]`` and ``A`` ``[r, n]`` of columns of slots, a frozen one being zeros without memory."""
        rank, m, n = len(b), self.module.out_features, self.module.in_features
        zero = np.float32(0.0)
        return b.T if self.b else np.broadcast_to(zero, (m, rank)), a if self.a else np.broadcast_to(zero, (rank, n))


def _entry(codec: Codec, shape: list[int], start: int, size: int) -> dict[str, Any]:
    return {"dtype": codec.safetensors_dtype, "shape": shape, "data_offsets": [start, start + size]}


def _rows(tensor: DenseTensor) -> tuple[int, int]:
    """A dense tensor as a matrix: int8 keeps one scale per leading index, one in all for a vector."""
    count = tensor.shape[0] if len(tensor.shape) > 1 else 1
    return count, tensor.size // count
