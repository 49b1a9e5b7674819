"""What private training has cost this device so far: steps by sampling rate and noise, durable before they are used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edge_client.errors import ConfigError
from edge_client.storage.files import write_durably
from protocol.errors import RemoteProtocolError
from protocol.typed import Fields, parse_json

__all__ = ["Charge", "Ledger", "booked"]

FORMAT = "tributary-ledger/1"
_MAX_BYTES = 1 << 20
_CHARGES_MAX = 4096
_STEPS_MAX = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Charge:
    """Steps of DP-SGD at one sampling rate and one noise."""

    sampling_rate: float
    """Probability ``q`` with which each example is in a batch."""
    noise_multiplier: float
    """``σ``: the noise's standard deviation over the clipping norm."""
    steps: int
    """How many."""


def booked(charges: Sequence[Charge], charge: Charge) -> tuple[Charge, ...]:
    """Charges with one more: steps of like sampling rate and noise are one charge.

    Example:
        >>> ten = Charge(sampling_rate=0.1, noise_multiplier=1.0, steps=10)
        >>> [each.steps for each in booked(booked([], ten), ten)]
        [20]
    """
    like = [each for each in charges if replace(each, steps=charge.steps) == charge]
    rest = tuple(each for each in charges if each not in like)
    return (*rest, replace(charge, steps=charge.steps + sum(each.steps for each in like)))


class Ledger:
    """The file that holds it, written as a whole each time.

    A ledger that cannot be read is never taken for an empty one: what was spent would be forgotten.

    Args:
        path: The file; there is none until something is added.

    Attributes:
        charges: All steps so far, those of like sampling rate and noise in one.
        delta: ``δ`` that they were last accounted at; 0 while there are none.

    Raises:
        ConfigError: The file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.charges: tuple[Charge, ...] = ()
        self.delta = 0.0
        if not path.exists():
            return
        try:
            self._read(parse_json(path.read_bytes(), _MAX_BYTES, "privacy ledger"))
        except (OSError, RemoteProtocolError) as error:
            raise ConfigError(
                f"state_dir: {path} cannot be read ({error}), and without it nobody knows what this device's privacy "
                "budget has left: restore it, or `tributary-client leave --force` and count all of it as spent"
            ) from error

    def add(self, charge: Charge, delta: float) -> None:
        """Books steps; on return they survive a power cut.

        Raises:
            ConfigError: There are too many kinds of steps for one file.
        """
        charges = booked(self.charges, charge)
        if len(charges) > _CHARGES_MAX:
            raise ConfigError(f"{self._path} holds {_CHARGES_MAX} kinds of private steps, which is as many as it can")
        record = {"format": FORMAT, "delta": delta, "charges": [asdict(each) for each in charges]}
        write_durably(self._path, json.dumps(record, indent=1).encode() + b"\n")
        self.charges, self.delta = charges, delta

    def _read(self, fields: Fields) -> None:
        if fields.text("format") != FORMAT:
            raise RemoteProtocolError(f"privacy ledger: expected format {FORMAT!r}")
        self.delta = fields.number("delta", minimum=0.0, maximum=1.0)
        self.charges = tuple(_charge(each) for each in fields.tables("charges", _CHARGES_MAX))
        fields.finish()


def _charge(fields: Fields) -> Charge:
    charge = Charge(
        sampling_rate=fields.number("sampling_rate", minimum=0.0, maximum=1.0),
        noise_multiplier=fields.number("noise_multiplier", minimum=0.0),
        steps=fields.integer("steps", maximum=_STEPS_MAX),
    )
    fields.finish()
    return charge
