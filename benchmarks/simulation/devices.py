"""What devices are like: how fast they train and send, when they are there; read from a file, or drawn by chance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

__all__ = ["Device", "Fleet", "read_devices", "write_devices"]

_TENFOLD = math.log(10) / (2 * 1.6449)
"""Deviation of ``ln x`` by which nine devices in ten lie within a factor of ten."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, on the virtual clock."""

    assignment_s: float = 0.0
    """Seconds that an assignment takes beside its steps."""
    step_s: float = 0.0
    """Seconds of an optimizer step."""
    up_bytes_per_s: float = math.inf
    """Bytes that it sends in a second, frames and all."""
    down_bytes_per_s: float = math.inf
    """Bytes that it receives in a second."""
    away: Sequence[tuple[float, float]] = ()
    """From when to when it is not there, seconds from the start of each period; ascending, apart, and within it."""
    period_s: float = math.inf
    """After how many seconds ``away`` begins again; infinite: never."""

    def __post_init__(self) -> None:
        """Gathers all faults.

        Raises:
            ValueError: A field is out of range; names each.
        """
        faults = [
            f"{name}: expected a number from 0, got {value!r}"
            for name, value in (("assignment_s", self.assignment_s), ("step_s", self.step_s))
            if not 0 <= value < math.inf
        ]
        faults += [
            f"{name}: expected a number above 0, got {value!r}"
            for name, value in (
                ("up_bytes_per_s", self.up_bytes_per_s),
                ("down_bytes_per_s", self.down_bytes_per_s),
                ("period_s", self.period_s),
            )
            if not value > 0
        ]
        times = [time for interval in self.away for time in interval]
        ascending = all(before < after for before, after in zip([-1.0, *times], times, strict=False))
        if not ascending or (times and not times[-1] < self.period_s):
            faults.append("away: expected ascending intervals that end within the period, and are apart")
        if faults:
            raise ValueError("; ".join(faults))

    def training_s(self, steps: int) -> float:
        """Seconds that an assignment of this many optimizer steps takes."""
        return self.assignment_s + steps * self.step_s

    def away_until(self, now: float) -> float | None:
        """When it is back; None: it is there."""
        return next((back for left, back in self._intervals(now) if left <= now < back), None)

    def leaves_at(self, now: float) -> float | None:
        """When it leaves next; None: never again."""
        return next((left for left, _ in self._intervals(now) if left > now), None)

    def _intervals(self, now: float) -> Iterator[tuple[float, float]]:
        """When it is away in this period, the one before and the one after, seconds of the clock."""
        if math.isinf(self.period_s):
            yield from self.away
            return
        current = now // self.period_s
        for period in (current - 1, current, current + 1):
            yield from ((period * self.period_s + left, period * self.period_s + back) for left, back in self.away)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """A model of many devices: speeds are log-normal and independent, and devices come and go by chance.

    It is a model, no measurement. The default spreads put nine devices in ten within a factor of ten of each other, the
    order of what FedScale reports of phones' inference times and of their links; that devices leave in the midst of
    rounds follows FLASH, which found it in the logs of 136 thousand phones. Times there and away are exponential,
    and as many are away at first as later.

    References:
        Lai et al., "FedScale", 2022, arXiv:2105.11367, section 3.2; Yang et al., "Characterizing Impacts of
        Heterogeneity in Federated Learning", 2021, arXiv:2006.06983.
    """

    step_s: float = 1.0
    """Median of :attr:`Device.step_s`."""
    step_spread: float = _TENFOLD
    """Deviation of its natural logarithm."""
    up_bytes_per_s: float = math.inf
    """Median of :attr:`Device.up_bytes_per_s`."""
    down_bytes_per_s: float = math.inf
    """Median of :attr:`Device.down_bytes_per_s`."""
    link_spread: float = _TENFOLD
    """Deviation of the natural logarithm of a device's link, both ways alike."""
    there_s: float = math.inf
    """Mean seconds that a device stays; infinite: all stay."""
    away_s: float = 600.0
    """Mean seconds until it is back."""
    period_s: float = 86400.0
    """After how many seconds a device's comings and goings repeat; one that is away as they end is back then."""

    def draw(self, count: int, seed: int) -> list[Device]:
        """Draws devices; the first ones are the same, however many are drawn.

        Args:
            count: How many.
            seed: Decides all.
        """
        return [self._device(np.random.default_rng((seed, number))) for number in range(count)]

    def _device(self, rng: np.random.Generator) -> Device:
        step, link = (math.exp(spread * rng.standard_normal()) for spread in (self.step_spread, self.link_spread))
        return Device(
            step_s=self.step_s * step,
            up_bytes_per_s=self.up_bytes_per_s / link,
            down_bytes_per_s=self.down_bytes_per_s / link,
            away=self._away(rng),
            period_s=self.period_s,
        )

    def _away(self, rng: np.random.Generator) -> tuple[tuple[float, float], ...]:
        if math.isinf(self.there_s):
            return ()
        found: list[tuple[float, float]] = []
        away_first = rng.random() < self.away_s / (self.there_s + self.away_s)
        left = 0.0 if away_first else rng.exponential(self.there_s)
        while left < self.period_s:
            back = left + rng.exponential(self.away_s)
            found.append((left, min(back, math.nextafter(self.period_s, 0.0))))
            left = back + rng.exponential(self.there_s)
        return tuple(found)


def read_devices(path: Path) -> list[Device]:
    """Reads a trace: a JSON list with an object per device, of :class:`Device`'s fields; those left out have defaults.

    Raises:
        OSError: It cannot be read.
        ValueError: It is something else; names the device.
    """
    entries = json.loads(path.read_bytes())
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of devices, got {type(entries).__name__}")
    return [_read(f"{path}: device {number}", entry) for number, entry in enumerate(entries)]


def write_devices(devices: Sequence[Device], path: Path) -> None:
    """Writes a trace; what is infinite is left out, as JSON has no such number."""
    entries = [{name: value for name, value in asdict(device).items() if value != math.inf} for device in devices]
    path.write_text(json.dumps(entries, indent=1, allow_nan=False) + "\n")


def _read(where: str, entry: object) -> Device:
    names = {field.name for field in fields(Device)}
    if not isinstance(entry, dict) or not set(entry) <= names:
        raise ValueError(f"{where}: expected an object with fields of {sorted(names)}")
    try:
        away = tuple((float(left), float(back)) for left, back in entry.pop("away", ()))
        return Device(**{name: float(value) for name, value in entry.items()}, away=away)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
