"""The in-memory transport: a device's frames go straight to the aggregator's hub, and its answers to a queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

from aggregator.hub import Hub, Outgoing
from edge_client.transport import Connected, Disconnected, LinkEvent, Received
from protocol.header import Frames

__all__ = ["MemoryNetwork", "MemoryTransport"]


class MemoryNetwork:
    """Connects any number of devices to one hub.

    Args:
        hub: The aggregator's side.
        clock: The time, seconds.
    """

    def __init__(self, hub: Hub, clock: Callable[[], float]) -> None:
        self._hub, self._clock = hub, clock
        self._peers = count(1)
        self._links: dict[bytes, MemoryTransport] = {}

    def connect(self, key: str) -> MemoryTransport:
        """A new connection of the device with this public key; nothing here checks that it has the secret one."""
        peer = next(self._peers).to_bytes(8, "big")
        self._links[peer] = MemoryTransport(self, peer, key)
        return self._links[peer]

    def poll(self) -> bool:
        """Lets the aggregator act on time and finished work; whether it had anything to say."""
        outgoing = self._hub.poll(self._clock())
        self._deliver(outgoing)
        return bool(outgoing)

    def break_links(self) -> None:
        """Cuts every connection, as a network failure does."""
        for link in list(self._links.values()):
            link.cut()

    def feed(self, peer: bytes, key: str, frames: Frames) -> None:
        """Carries one message to the hub, and its answers back."""
        self._deliver(self._hub.feed(peer, key, frames, self._clock()))

    def drop(self, peer: bytes) -> None:
        """Forgets a connection on both sides."""
        self._links.pop(peer, None)
        self._hub.forget(peer)

    def _deliver(self, outgoing: Iterable[Outgoing]) -> None:
        for peer, frames in outgoing:
            link = self._links.get(peer)
            if link is not None:
                link.take(frames)


class MemoryTransport:
    """One connection, as :class:`edge_client.transport.Transport` wants it."""

    def __init__(self, network: MemoryNetwork, peer: bytes, key: str) -> None:
        self._network, self._peer, self._key = network, peer, key
        self._inbox: deque[LinkEvent] = deque([Connected()])
        self._open = True
        self.bytes_sent = 0
        self.bytes_received = 0

    def send(self, frames: Frames) -> None:
        """Hands the frames to the hub at once."""
        if self._open:
            self.bytes_sent += sum(map(len, frames))
            self._network.feed(self._peer, self._key, frames)

    def recv(self, timeout_s: float) -> LinkEvent | None:
        """The next event; memory never makes anybody wait, so ``timeout_s`` has no meaning."""
        del timeout_s
        return self._inbox.popleft() if self._inbox else None

    def close(self) -> None:
        """Ends the connection."""
        if self._open:
            self._open = False
            self._network.drop(self._peer)

    def take(self, frames: Frames) -> None:
        """Queues what the aggregator sent."""
        self.bytes_received += sum(map(len, frames))
        self._inbox.append(Received(frames))

    def cut(self) -> None:
        """Breaks the connection from outside; what was on its way is lost."""
        self.close()
        self._inbox = deque([Disconnected("the simulated link was cut")])
