"""Commands to a home: over a local socket to its live daemon, or on its journal where no daemon runs.

The socket lies in a folder that only its owner may enter; whoever can reach it can read the journal as well, so it
asks for no further proof.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zmq

from aggregator import errors
from aggregator.errors import AggregatorError, HomeError, HomeInUse
from aggregator.gate.enrolment import Enrolment
from aggregator.operations import Operations, StoppedRun
from aggregator.runs import current_config
from aggregator.store.home import Home, HomeLock
from aggregator.store.journal import Journal

__all__ = ["ControlServer", "command"]

_PATIENCE_S = 10.0
_REQUEST_MAX_BYTES = 1 << 16


class ControlServer:
    """The daemon's side.

    Args:
        context: Any context.
        endpoint: ``ipc://`` endpoint, in a private folder.
        operations: What it can do.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, operations: Operations) -> None:
        self._operations, self._path = operations, Path(endpoint.removeprefix("ipc://"))
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 1000
        self.socket.setsockopt(zmq.MAXMSGSIZE, _REQUEST_MAX_BYTES)
        self.socket.bind(endpoint)

    def answer(self) -> None:
        """Carries out all commands that wait."""
        while self.socket.poll(0):
            self.socket.send(json.dumps(self._reply(self.socket.recv_multipart()[0])).encode())

    def close(self) -> None:
        """Takes no more commands; the last answer still leaves."""
        self.socket.close()
        self._path.unlink(missing_ok=True)

    def _reply(self, request: bytes) -> dict[str, Any]:
        try:
            wanted = json.loads(request)
            return {"result": self._operations.perform(wanted.pop("command"), wanted)}
        except AggregatorError as error:
            return {"error": type(error).__name__, "message": str(error)}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            return {"error": "ConfigError", "message": f"not a command ({error})"}


def command(home: Home, name: str, /, **arguments: object) -> dict[str, Any]:
    """Has a command carried out, by the live daemon if there is one.

    Raises:
        AggregatorError: What the command raised, or the daemon does not answer.
    """
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with HomeLock(home):
                return _on_journal(home, name, arguments)
        except HomeInUse:
            # Its owner is a daemon, or another command that is done in a moment.
            if Path(home.control_endpoint.removeprefix("ipc://")).exists():
                return _over_socket(home.control_endpoint, {"command": name, **arguments})
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)


def _on_journal(home: Home, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    with Journal(home.journal) as journal:
        config = current_config(home, journal)
        enrolment = Enrolment(config.run, journal, strict=config.strict_enrolment, wall_clock=time.time)
        return Operations(home, journal, enrolment, StoppedRun(home, journal)).perform(name, arguments)


def _over_socket(endpoint: str, request: Mapping[str, Any]) -> dict[str, Any]:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        socket.send(json.dumps(request).encode())  # once: `extend` twice would extend twice
        if not socket.poll(int(1000 * _PATIENCE_S)):
            raise HomeError(f"the daemon does not answer on {endpoint}; is it stopped or stuck?")
        reply = json.loads(socket.recv())
    if "error" in reply:
        raise _error(reply["error"], reply["message"])
    result: dict[str, Any] = reply["result"]
    return result


def _error(name: str, message: str) -> AggregatorError:
    """The daemon's error as one of this process, so that exit codes are the same."""
    kind = getattr(errors, name, AggregatorError) if name in errors.__all__ else AggregatorError
    error: AggregatorError = kind(message)
    return error
