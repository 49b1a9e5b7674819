"""Who runs cells, as ``--workers`` names it: processes of this machine, or a Ray cluster. Loads neither."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["Processes", "Ray", "Workers", "read_workers"]

_PROCESSES_MAX = 256


@dataclass(frozen=True)
class Processes:
    """Processes of this machine."""

    count: int
    """How many; 1: the one that asks."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster, one CPU a cell."""

    address: str | None
    """``HOST:PORT`` of its head, of whose nodes this machine is one; None: one that is made here, of this machine."""


Workers = Processes | Ray


def read_workers(text: str) -> Workers:
    """Reads the flag.

    Args:
        text: A number of processes, ``ray``, or ``ray:HOST:PORT``.

    Raises:
        ValueError: It is neither, or Ray is not installed; says which.

    Example:
        >>> read_workers("4")
        Processes(count=4)
    """
    if text.isdecimal() and 1 <= int(text) <= _PROCESSES_MAX:
        return Processes(int(text))
    kind, _, address = text.partition(":")
    host, _, port = address.rpartition(":")
    if kind != "ray" or (text != "ray" and not (host and port.isdecimal())):
        raise ValueError(f"expected a whole number from 1 to {_PROCESSES_MAX}, ray, or ray:HOST:PORT, got {text!r}")
    if find_spec("ray") is None:
        raise ValueError(f"{text}: Ray is not installed; pip install 'tributary-fl[ray]'")
    return Ray(address or None)
