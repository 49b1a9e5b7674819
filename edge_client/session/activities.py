"""What the client is doing on its connection right now: one thing at most, dropped when the link breaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from edge_client.session.events import Outgoing
from protocol.assignment import Assignment, Handout
from protocol.messages import Credit, Data, Finished
from protocol.transfer import Download, Piece, Sender

__all__ = ["Activity", "Asking", "Declining", "Fetching", "Job", "Phase", "Reporting", "Uploading"]


class Phase(StrEnum):
    """Where a client is, as its status shows it."""

    OFFLINE = "offline"
    """No connection; the next try is timed."""
    CONNECTING = "connecting"
    """Dialling, or waiting for the aggregator's greeting."""
    PREPARING = "preparing"
    """Loading the base model and the data."""
    ASKING = "asking"
    """Asking for work."""
    WAITING = "waiting"
    """No work now; asks again by itself."""
    FETCHING = "fetching"
    """Downloading the manifest or a hand-out."""
    TRAINING = "training"
    """Carrying out an assignment."""
    SENDING = "sending"
    """Delivering a result that is safe in the outbox."""
    INSTALLING = "installing"
    """Putting the final adapter into the model."""
    PAUSED = "paused"
    """Asks for no work until resumed."""
    FINISHED = "finished"
    """The run is over; the final adapter is in use."""
    STOPPED = "stopped"
    """Stopped by the app; a new start goes on from here."""
    FAILED = "failed"
    """Cannot go on; the error says why."""

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more."""
        return self in (Phase.FINISHED, Phase.STOPPED, Phase.FAILED)


class Job(StrEnum):
    """What the worker is doing; unlike an activity, it goes on while the link is down."""

    PREPARE = "prepare"
    TRAIN = "train"
    INSTALL = "install"


@dataclass
class Fetching:
    """An object is on its way here."""

    goal: Assignment | Finished | None
    """What it is for; None: it is the manifest."""
    digest: str
    size: int
    later: tuple[Handout, ...] = ()
    """What else to fetch for the same goal."""
    download: Download | None = None
    """None until the disk says how much of it is there."""

    @classmethod
    def of(cls, goal: Assignment | Finished | None, objects: Sequence[Handout]) -> Self:
        """The first of these objects, and then the others."""
        first, *later = objects
        return cls(goal, first.digest, first.object_bytes, tuple(later))

    def pieces(self, chunk_bytes: int) -> Iterator[Piece]:
        """What to ask for now."""
        if self.download is not None:
            self.download.chunk_bytes = chunk_bytes
            while piece := self.download.next_request():
                yield piece

    def accept(self, data: Data) -> bool:
        """Whether to write this piece."""
        if self.download is None or data.digest != self.digest:
            return False
        return self.download.accept(data.offset, len(data.payload))


@dataclass
class Asking:
    """``READY`` is out."""

    q: int


@dataclass
class Uploading:
    """An update is offered or on its way."""

    item: Outgoing
    upload: str
    sender: Sender
    granted: bool = False
    """Whether a first credit came."""
    queued: bool = False
    """Whether the aggregator has us wait for a free slot."""

    def credit(self, credit: Credit) -> int:
        """Takes a credit and returns how many more bytes arrived over there."""
        moved = 0
        if self.granted:
            before = self.sender.acknowledged
            self.sender.credit(credit.have, credit.upto)
            moved = self.sender.acknowledged - before
        else:
            self.granted = True
            self.sender.resume(credit.have, credit.upto)
        self.queued = credit.upto == credit.have < len(self.item.data)
        return moved

    def chunks(self, chunk_bytes: int) -> Iterator[tuple[int, memoryview]]:
        """What to send now: offsets and bytes."""
        self.sender.chunk_bytes = chunk_bytes
        while piece := self.sender.next_piece():
            yield piece.offset, self.item.data[piece.offset : piece.offset + piece.length]


@dataclass
class Reporting:
    """Metrics are on their way."""

    item: Outgoing


@dataclass
class Declining:
    """A refusal is on its way; the error is raised once it is known, or after a short while."""

    token: str
    error: Exception


Activity = Fetching | Asking | Uploading | Reporting | Declining
