"""The fingerprint: whether two devices hold the same base model, however each of them quantised it.

It is a SHA-256 over the *unquantised* source tensors: names, dtypes, shapes and bytes, in whatever order and however
many files they lie. The same construction over named files identifies a tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from protocol.errors import LocalProtocolError

__all__ = ["SourceTensor", "files_digest", "fingerprint"]

Buffer = bytes | bytearray | memoryview
SourceTensor = tuple[str, str, tuple[int, ...], Buffer]
"""Name, safetensors dtype (``"F32"``), shape, little-endian bytes in row-major order."""


def fingerprint(tensors: Iterable[SourceTensor]) -> str:
    """Digest of a set of tensors, ``H(sorted H(name, dtype, shape, H(bytes)))``.

    Args:
        tensors: The tensors, in any order; each is read once and may be dropped before the next one comes.

    Returns:
        64 hex digits.

    Raises:
        LocalProtocolError: Two tensors share one name, or there is none.

    Example:
        >>> a, b = ("a", "F32", (1,), bytes(4)), ("b", "U8", (0,), b"")
        >>> fingerprint([a, b]) == fingerprint([b, a]) != fingerprint([a])
        True
    """
    entries = {}
    for name, dtype, shape, data in tensors:
        if name in entries:
            raise LocalProtocolError(f"the checkpoint holds {name!r} twice: remove the stale weight file")
        entries[name] = [dtype, list(shape), hashlib.sha256(data).hexdigest()]
    return _digest(entries, "tensor")


def files_digest(files: Iterable[tuple[str, bytes]]) -> str:
    """Digest of a set of named files, such as a tokenizer's, in any order.

    Raises:
        LocalProtocolError: Two files share one name, or there is none.
    """
    entries: dict[str, str] = {}
    for name, data in files:
        if name in entries:
            raise LocalProtocolError(f"two files are named {name!r}")
        entries[name] = hashlib.sha256(data).hexdigest()
    return _digest(entries, "file")


def _digest(entries: object, what: str) -> str:
    if not entries:
        raise LocalProtocolError(f"a fingerprint needs at least one {what}")
    return hashlib.sha256(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
