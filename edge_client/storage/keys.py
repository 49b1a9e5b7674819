"""This device's CURVE key pair: made on the device, kept in a file only its owner can read, never sent anywhere."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from edge_client.errors import ConfigError
from edge_client.storage.files import write_durably
from protocol.errors import RemoteProtocolError
from protocol.identity import check_key, client_id
from protocol.typed import parse_json

__all__ = ["KeyPair", "create_key", "load_key"]

FORMAT = "tributary-key/1"
_MAX_BYTES = 1024


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85 form."""

    public: str
    """What the aggregator knows this device by."""
    secret: str = field(repr=False)
    """What proves it."""

    @property
    def client_id(self) -> str:
        """The device's name in the operator's ``status``."""
        return client_id(self.public)


def create_key(path: Path, secret: bytes | None = None) -> KeyPair:
    """Makes a new key pair and writes it, readable by the owner alone.

    Args:
        path: The file to make.
        secret: 32 bytes; None: random ones. Given only where a run must repeat, and then no secret.

    Raises:
        ConfigError: There is a file already; a key is never overwritten.
    """
    if path.exists():
        raise ConfigError(f"{path} exists: a key is never overwritten; name another file, or remove it yourself")
    encoded = zmq.curve_keypair()[1] if secret is None else z85.encode(secret)
    pair = KeyPair(zmq.curve_public(encoded).decode(), encoded.decode())
    text = json.dumps({"format": FORMAT, "public": pair.public, "secret": pair.secret}, indent=1)
    write_durably(path, text.encode() + b"\n", mode=0o600)
    return pair


def load_key(path: Path) -> KeyPair:
    """Reads what :func:`create_key` wrote.

    Raises:
        ConfigError: The file is missing, is no key, or can be read by others.
    """
    try:
        fields = parse_json(path.read_bytes(), _MAX_BYTES, "key file")
        if fields.text("format") != FORMAT:
            raise RemoteProtocolError(f"key file: expected format {FORMAT!r}")
        pair = KeyPair(check_key(fields.text("public")), check_key(fields.text("secret")))
        fields.finish()
    except (OSError, RemoteProtocolError) as error:
        raise ConfigError(f"{path}: cannot be used as a key ({error}); `tributary-client keygen` makes one") from error
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by other users: run `chmod 600 {path}`")
    if zmq.curve_public(pair.secret.encode()).decode() != pair.public:
        raise ConfigError(f"{path}: the public key does not belong to the secret one; make a new key")
    return pair
