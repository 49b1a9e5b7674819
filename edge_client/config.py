"""What an app sets, checked in one go: all faults are reported together, before anything is loaded or dialled."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.errors import ConfigError, TicketError
from edge_client.storage.home import default_folder
from edge_client.trainer import Trainer
from protocol import limits
from protocol.errors import RemoteProtocolError
from protocol.manifest import Quantization
from protocol.ticket import Ticket

if TYPE_CHECKING:
    import os

__all__ = ["ClientConfig", "LocalModel", "read_ticket"]


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """What the built-in torch trainer is made of."""

    model: str | Path | None = None
    """Base model: hub id or folder."""
    data: object = None
    """Training data: a ``datasets.Dataset``, a list of dicts, a JSONL or CSV path, or a torch ``Dataset``."""
    eval_data: object = None
    """Evaluation data, the same kinds; None: the trainer decides."""
    quantization: str = "nf4"
    """How to hold the base: ``nf4``, ``int8``, ``bf16`` or ``fp32``."""
    rank: int | None = None
    """LoRA rank; None: the run's default."""
    lora_alpha: float | None = None
    """PEFT's ``lora_alpha``; None: the trainer's default."""
    use_rslora: bool = False
    """Scaling ``α/√r`` instead of ``α/r``."""
    residual: bool = False
    """Whether to take the frozen residual behind the own slots."""
    micro_batch_size: int | None = None
    """Examples in one forward pass; None: the whole batch."""
    device: str | None = None
    """torch device; None: CUDA if there is one."""

    def faults(self) -> list[str]:
        """What is wrong, one sentence each."""
        found = []
        if self.model is None or self.data is None:
            missing = [name for name in ("model", "data") if getattr(self, name) is None]
            found.append(f"{' and '.join(missing)}: missing; the built-in trainer needs both (or pass trainer=)")
        if self.quantization not in list(Quantization):
            found.append(f"quantization: expected one of {', '.join(Quantization)}, got {self.quantization!r}")
        found += _whole("rank", self.rank, limits.RANK_MAX)
        found += _whole("micro_batch_size", self.micro_batch_size, 1 << 20)
        alpha = self.lora_alpha
        if alpha is not None and not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha > 0):
            found.append(f"lora_alpha: expected a positive number, got {alpha!r}")
        for name in ("use_rslora", "residual"):
            if not isinstance(getattr(self, name), bool):
                found.append(f"{name}: expected True or False, got {getattr(self, name)!r}")
        return found


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Everything a client needs to know before it starts."""

    ticket: Ticket
    """The way in."""
    trainer: Trainer | LocalModel
    """What trains."""
    state_dir: Path
    """Where key, outbox and fetched objects are kept."""
    key_file: Path | None
    """A key of :command:`tributary-client keygen`; None: the folder's own."""
    name: str
    """What the operator's ``status`` calls this device."""
    epsilon_max: float | None = None
    """This device's own privacy budget; None: the run decides alone."""

    @classmethod
    def build(
        cls,
        *,
        ticket: str | os.PathLike[str] | Ticket,
        trainer: Trainer | LocalModel,
        state_dir: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        name: str | None = None,
        epsilon_max: float | None = None,
    ) -> ClientConfig:
        """Checks everything.

        Raises:
            TicketError: The ticket cannot be read, and nothing else is wrong.
            ConfigError: Whatever else is wrong, all of it.
        """
        faults = trainer.faults() if isinstance(trainer, LocalModel) else []
        key_file = None if key is None else Path(key)
        if key_file is not None and not key_file.is_file():
            faults.append(f"key: there is no file {key_file}; `tributary-client keygen {key_file}` makes one")
        if state_dir is not None and Path(state_dir).exists() and not Path(state_dir).is_dir():
            faults.append(f"state_dir: {state_dir} is no folder")
        if name is not None and not (isinstance(name, str) and 1 <= len(name) <= 64):
            faults.append(f"name: expected 1 to 64 characters, got {name!r}")
        budget = epsilon_max
        if budget is not None and not (isinstance(budget, int | float) and math.isfinite(budget) and budget > 0):
            faults.append(f"epsilon_max: expected a number above 0, got {budget!r}")
        try:
            read = read_ticket(ticket)
        except TicketError as error:
            if not faults:
                raise
            raise ConfigError("; ".join([*faults, f"ticket: {error}"])) from error
        if faults:
            raise ConfigError("; ".join(faults))
        return cls(
            ticket=read,
            trainer=trainer,
            state_dir=Path(state_dir) if state_dir is not None else default_folder(read, key_file),
            key_file=key_file,
            name=name or socket.gethostname()[:64] or "device",
            epsilon_max=epsilon_max,
        )


def read_ticket(ticket: str | os.PathLike[str] | Ticket) -> Ticket:
    """A ticket, or the one in a file.

    Raises:
        TicketError: It cannot be read.
    """
    if isinstance(ticket, Ticket):
        return ticket
    try:
        return Ticket.from_json(Path(ticket).read_bytes())
    except (OSError, RemoteProtocolError) as error:
        raise TicketError(f"{ticket}: cannot be used as a ticket: {error}") from error


def _whole(name: str, value: object, maximum: int) -> list[str]:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or (isinstance(value, int) and whole and 1 <= value <= maximum):
        return []
    return [f"{name}: expected a whole number from 1 to {maximum}, got {value!r}"]
