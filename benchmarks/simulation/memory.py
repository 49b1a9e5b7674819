"""The in-memory transport: frames go to the aggregator's hub, and its answers to a queue, at the pace of a link."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

from aggregator.hub import Hub, Outgoing
from benchmarks.simulation.devices import Device
from edge_client.transport import Connected, Disconnected, LinkEvent, Received
from protocol.header import Frames

__all__ = ["Lane", "MemoryNetwork", "MemoryTransport"]


class Lane:
    """One direction of a link: a message after the other, each as long as its bytes take.

    Args:
        bytes_per_s: Its speed.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s, self._free_at = bytes_per_s, 0.0

    def arrival(self, now: float, size: int) -> float:
        """When a message of this many bytes, sent now, is at the other end."""
        self._free_at = max(self._free_at, now) + size / self._bytes_per_s
        return self._free_at


class MemoryNetwork:
    """Connects any number of devices to one hub.

    Args:
        hub: The aggregator's side.
        clock: The time, seconds.
    """

    def __init__(self, hub: Hub, clock: Callable[[], float]) -> None:
        self._hub, self._clock = hub, clock
        self._peers, self._order = count(1), count()
        self._links: dict[bytes, MemoryTransport] = {}
        self._under_way: list[tuple[float, int, Callable[[], None]]] = []

    def connect(self, key: str, device: Device, heard: Callable[[], None]) -> MemoryTransport:
        """A new connection.

        Args:
            key: The device's public key; nothing here checks that it has the secret one.
            device: How fast its link is.
            heard: Told whenever there is something to receive.
        """
        peer = next(self._peers).to_bytes(8, "big")
        self._links[peer] = MemoryTransport(self, peer, key, device, heard)
        return self._links[peer]

    def poll(self) -> bool:
        """Delivers what has arrived, and lets the aggregator act on time and finished work; whether there was any."""
        arrived = False
        while self._under_way and self._under_way[0][0] <= self._clock():
            arrived = True
            heapq.heappop(self._under_way)[2]()
        outgoing = self._hub.poll(self._clock())
        self._deliver(outgoing)
        return arrived or bool(outgoing)

    @property
    def next_arrival(self) -> float | None:
        """When the first message that is under way arrives; None: there is none."""
        return self._under_way[0][0] if self._under_way else None

    def break_links(self) -> None:
        """Cuts every connection, as a network failure does."""
        for link in list(self._links.values()):
            link.cut()

    def feed(self, peer: bytes, key: str, frames: Frames) -> None:
        """Hands one message to the hub, and sends its answers; what a broken link carried is lost."""
        if peer in self._links:
            self._deliver(self._hub.feed(peer, key, frames, self._clock()))

    def carry(self, lane: Lane, size: int, deliver: Callable[[], None]) -> None:
        """Delivers a message once its lane has carried it; at once, if that takes no time."""
        at = lane.arrival(self._clock(), size)
        if at <= self._clock():
            deliver()
        else:
            heapq.heappush(self._under_way, (at, next(self._order), deliver))

    def drop(self, peer: bytes) -> None:
        """Forgets a connection on both sides."""
        self._links.pop(peer, None)
        self._hub.forget(peer)

    def _deliver(self, outgoing: Iterable[Outgoing]) -> None:
        for peer, frames in outgoing:
            link = self._links.get(peer)
            if link is not None:
                link.answer(frames)


class MemoryTransport:
    """One connection, as :class:`edge_client.transport.Transport` wants it."""

    def __init__(
        self, network: MemoryNetwork, peer: bytes, key: str, device: Device, heard: Callable[[], None]
    ) -> None:
        self._network, self._peer, self._key, self._heard = network, peer, key, heard
        self._up, self._down = Lane(device.up_bytes_per_s), Lane(device.down_bytes_per_s)
        self._inbox: deque[LinkEvent] = deque()
        self._open = True
        self.bytes_sent = 0
        self.bytes_received = 0
        self._put(Connected())

    def send(self, frames: Frames) -> None:
        """Sends the frames."""
        if self._open:
            size = sum(map(len, frames))
            self.bytes_sent += size
            self._network.carry(self._up, size, lambda: self._network.feed(self._peer, self._key, frames))

    def recv(self, timeout_s: float) -> LinkEvent | None:
        """The next event that is there; the virtual clock makes nobody wait, so ``timeout_s`` has no meaning."""
        del timeout_s
        return self._inbox.popleft() if self._inbox else None

    def close(self) -> None:
        """Ends the connection."""
        if self._open:
            self._open = False
            self._network.drop(self._peer)

    def answer(self, frames: Frames) -> None:
        """Sends what the aggregator says."""
        self._network.carry(self._down, sum(map(len, frames)), lambda: self.take(frames))

    def take(self, frames: Frames) -> None:
        """Queues what arrived from the aggregator; nothing, if the link is broken."""
        if self._open:
            self.bytes_received += sum(map(len, frames))
            self._put(Received(frames))

    def cut(self) -> None:
        """Breaks the connection from outside; what was on its way is lost."""
        self.close()
        self._inbox.clear()
        self._put(Disconnected("the simulated link was cut"))

    def _put(self, event: LinkEvent) -> None:
        self._inbox.append(event)
        self._heard()
