"""A run's result as two files: its manifest, and the adapter of one rank as the wire's safetensors object.

Any tuning method's result is such a pair, whatever its trainables are: dense tensors are offsets from base or
initializer, low-rank modules are factors ``B̂·A``, all in float32. Where the files lie is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from protocol import limits
from protocol.codecs import Codec
from protocol.errors import RemoteProtocolError
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors, Layout
from protocol.typed import parse_json

__all__ = ["ADAPTER_FILE", "FILES", "MANIFEST_FILE", "ExportedAdapter"]

MANIFEST_FILE = "manifest.json"
ADAPTER_FILE = "adapter.safetensors"
FILES = (MANIFEST_FILE, ADAPTER_FILE)
"""The names by which the files are known, inside a folder of their own."""


@dataclass(frozen=True)
class ExportedAdapter:
    """What a run came to, at one rank."""

    manifest: Manifest
    """The run's universe."""
    tensors: AdapterTensors
    """In the layout of the whole manifest."""

    def to_files(self) -> Mapping[str, bytes]:
        """The files' contents by name.

        Raises:
            LocalProtocolError: A tensor is missing or misshapen, or a value is not finite.
        """
        adapter = Layout.of(self.manifest).encode(self.tensors, Codec.FP32)
        return {MANIFEST_FILE: self.manifest.to_json() + b"\n", ADAPTER_FILE: adapter}

    @classmethod
    def of_files(cls, files: Mapping[str, bytes]) -> Self:
        """Reads what :meth:`to_files` gave.

        Args:
            files: Contents by name, of whoever; nothing in them is trusted or run.

        Raises:
            RemoteProtocolError: They are no such pair, or not of this version; names the file or tensor.
        """
        manifest = Manifest.from_json(files[MANIFEST_FILE])
        layout, adapter = Layout.of(manifest), files[ADAPTER_FILE]
        try:
            tensors = layout.decode(adapter, _rank(adapter, layout), Codec.FP32)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"{ADAPTER_FILE} does not fit {MANIFEST_FILE}: {error}", error.code) from error
        return cls(manifest, tensors)


def _rank(adapter: bytes, layout: Layout) -> int:
    """What the file says of its slots; :meth:`Layout.decode` then compares its whole header."""
    if not layout.low_rank:
        return 0
    header = parse_json(adapter[8 : 8 + int.from_bytes(adapter[:8], "little")], limits.MANIFEST_MAX_BYTES, "header")
    shape = header.table("slots").integers("shape", count=2, maximum=limits.DIMENSION_MAX)
    if not shape or shape[0] > limits.RANK_MAX:
        raise RemoteProtocolError(f"'slots': expected a shape of 1..{limits.RANK_MAX} slots, got {shape}")
    return shape[0]
