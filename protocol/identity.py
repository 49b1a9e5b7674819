"""Names that both sides compute for themselves: of keys, devices and uploads."""

from __future__ import annotations

import hashlib
import re

from protocol.errors import RemoteProtocolError

__all__ = ["check_key", "client_id", "upload_id"]

_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z")


def check_key(key: str) -> str:
    """Returns a CURVE public key in Z85 form (ZeroMQ RFC 32), 40 characters.

    Raises:
        RemoteProtocolError: It is not one.
    """
    if not _Z85.match(key):
        raise RemoteProtocolError("expected a CURVE public key of 40 Z85 characters")
    return key


def client_id(public_key: str) -> str:
    """The name a device has in files, logs and ``status``: 16 hex digits, safe in a path.

    Example:
        >>> client_id("a" * 40)
        'c430c34350e3c87e'
    """
    return hashlib.sha256(b"client\0" + public_key.encode()).hexdigest()[:16]


def upload_id(run: str, round_number: int, public_key: str, token: str, sha256: str) -> str:
    """The id of one update of one client for one round.

    The aggregator computes it from the authenticated key, so an id cannot be claimed by another client, and the
    same update offered twice is the same upload.

    Returns:
        64 hex digits.
    """
    parts = ("upload-1", run, str(round_number), public_key, token, sha256)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
