"""A device's folder for one run: its key, what it fetched, and what it has yet to deliver.

::

    device.key       the CURVE key pair, readable by the owner alone
    run.json         which run and aggregator the folder belongs to, and whether the key is enrolled
    lock             held by the one process that uses the folder
    objects/         manifest and hand-outs by digest; ``.part`` while they arrive
    outbox/          trained, not yet acknowledged
    privacy.json     what private training has cost so far; there is none without
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from edge_client.errors import ConfigError, TicketError
from edge_client.storage.files import write_durably
from edge_client.storage.keys import KeyPair, create_key, load_key
from edge_client.storage.ledger import Ledger
from edge_client.storage.objects import Objects
from edge_client.storage.outbox import Outbox
from protocol.errors import RemoteProtocolError
from protocol.ticket import Ticket
from protocol.typed import parse_json

__all__ = ["Home", "default_folder"]

_MAX_BYTES = 4096


def default_folder(ticket: Ticket, key_file: Path | None = None) -> Path:
    """Where a device keeps a run's state if nobody says otherwise: the user's data folder, keyed by run and ticket.

    Two tickets of one run are two devices, also on one machine. Where devices are enrolled by hand, tickets hold no
    token, and the key file tells them apart.

    Args:
        ticket: The ticket joined with.
        key_file: The key named by the user, if any.
    """
    root = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    device = ticket.token or (str(key_file.resolve()) if key_file else "")
    name = "\0".join((ticket.run, ticket.server_key, device))
    return root / "tributary" / hashlib.sha256(name.encode()).hexdigest()[:16]


class Home:
    """The folder, locked while this object is open.

    Args:
        folder: Made if it does not exist.

    Raises:
        ConfigError: It cannot be made or written to, or another process is using it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for path in (folder, folder / "objects", folder / "outbox"):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock: IO[bytes] = (folder / "lock").open("ab")
        except OSError as error:
            raise ConfigError(f"state_dir: {folder} cannot be used: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(f"state_dir: {folder} is in use by another process; stop it, or name another") from error
        self.objects = Objects(folder / "objects")
        self.outbox = Outbox(folder / "outbox")
        self.ledger = Ledger(folder / "privacy.json")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the folder back."""
        self._lock.close()

    def key(self, key_file: Path | None = None) -> KeyPair:
        """The device's key: the file named, or the folder's own, made on first use."""
        if key_file is not None:
            return load_key(key_file)
        path = self.folder / "device.key"
        return load_key(path) if path.exists() else create_key(path)

    def bind(self, ticket: Ticket) -> bool:
        """Ties the folder to the ticket's run, once and for all.

        Returns:
            Whether this device's key is known to be enrolled.

        Raises:
            TicketError: It belongs to another run or aggregator.
        """
        path = self.folder / "run.json"
        if not path.exists():
            self._save(ticket, enrolled=False)
            return False
        try:
            fields = parse_json(path.read_bytes(), _MAX_BYTES, "run.json")
            run, server_key, enrolled = fields.text("run"), fields.text("server_key"), fields.flag("enrolled")
        except RemoteProtocolError as error:
            raise ConfigError(f"state_dir: {path} cannot be read: {error}") from error
        if (run, server_key) != (ticket.run, ticket.server_key):
            raise TicketError(
                f"the ticket is for run {ticket.run!r}, but {self.folder} holds the state of run {run!r}: "
                "name another state_dir, or `tributary-client leave` the old run first"
            )
        return enrolled

    def enrolled(self, ticket: Ticket) -> None:
        """Notes that the key is enrolled."""
        self._save(ticket, enrolled=True)

    def remove(self) -> None:
        """Deletes the folder with the key and everything else in it."""
        shutil.rmtree(self.folder)
        self.close()

    def _save(self, ticket: Ticket, *, enrolled: bool) -> None:
        record = {"run": ticket.run, "server_key": ticket.server_key, "enrolled": enrolled}
        write_durably(self.folder / "run.json", json.dumps(record).encode())
