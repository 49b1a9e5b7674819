"""A slow and unreliable link: a TCP relay with a rate, which counts bytes and cuts connections where it is told to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

__all__ = ["Carried", "Pace", "SlowLink"]

_CATCH_UP_S = 0.1
"""Idle time that a link makes up for at most."""
_PIECE_BYTES = 32 << 10
_BUFFER_BYTES = 64 << 10
"""Of the kernel, for what devices send: a slow link holds little, and what is under way when it breaks is lost."""


@dataclass
class Carried:
    """One connection's bytes, encryption and framing included."""

    up: int = 0
    """From the device."""
    down: int = 0
    """To the device."""
    cut: bool = False
    """Whether the relay cut it."""


class SlowLink:
    """Relays TCP connections on a port of its own to an aggregator's.

    Args:
        port: The aggregator's, on this machine.
        rate: Bytes per second of each connection, each way.
        cut_after: Asked for each new connection: after how many bytes from the device it breaks; None: never.

    Attributes:
        connections: What each carried, in order.
    """

    def __init__(self, port: int, rate: float, cut_after: Callable[[], int | None] = lambda: None) -> None:
        self._target, self._rate, self._cut_after = port, rate, cut_after
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self._socket.bind(("127.0.0.1", 0))
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self.connections: list[Carried] = []

    @property
    def port(self) -> int:
        """Where devices connect."""
        return int(self._socket.getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, sock=self._socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay = asyncio.ensure_future(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carries both ways until one side ends or the cut comes; then both sides see a reset."""
        carried, ends = Carried(), [writer]
        self.connections.append(carried)
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(to_server)
            ways = [
                asyncio.ensure_future(self._carry_up(reader, to_server, carried, self._cut_after())),
                asyncio.ensure_future(self._carry_down(from_server, writer, carried)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:  # nobody listens there now
            pass
        finally:
            for end in ends:
                end.transport.abort()

    async def _carry_up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, carried: Carried, limit: int | None
    ) -> None:
        pace = Pace(self._rate)
        with suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                if limit is not None and carried.up + len(data) >= limit:
                    data, carried.cut = data[: limit - carried.up], True
                carried.up += len(data)
                await _pass_on(writer, data, pace)
                if carried.cut:
                    return

    async def _carry_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, carried: Carried) -> None:
        pace = Pace(self._rate)
        with suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                carried.down += len(data)
                await _pass_on(writer, data, pace)


class Pace:
    """Keeps a rate: a sleep that was too long is made good by the next one.

    Args:
        rate: Bytes per second.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    def delay_s(self, count: int, now: float) -> float:
        """How long to wait after this many bytes.

        Args:
            count: Bytes.
            now: A monotonic time, seconds.
        """
        self._free_at = max(self._free_at, now - _CATCH_UP_S) + count / self._rate
        return max(0.0, self._free_at - now)


async def _pass_on(writer: asyncio.StreamWriter, data: bytes, pace: Pace) -> None:
    writer.write(data)
    await writer.drain()
    await asyncio.sleep(pace.delay_s(len(data), asyncio.get_running_loop().time()))
