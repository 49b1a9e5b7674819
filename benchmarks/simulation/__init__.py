"""Whole federations in one process: the product's own client and aggregator over memory and a virtual clock."""

from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.committed import Committed
from benchmarks.simulation.devices import Device, Fleet, read_devices, write_devices
from benchmarks.simulation.memory import MemoryNetwork, MemoryTransport
from benchmarks.simulation.run import SimulatedRun, StalledError

__all__ = [
    "Committed",
    "Device",
    "Fleet",
    "MemoryNetwork",
    "MemoryTransport",
    "SimulatedRun",
    "StalledError",
    "VirtualClock",
    "read_devices",
    "write_devices",
]
