"""What the daemon and its commands raise, and who can act on it.

::

    AggregatorError
    ├── ConfigError         an argument or a file of the operator's is wrong (all faults in one message)
    ├── HomeError           the home cannot be used
    │   └── HomeInUse       another process owns it; names the pid
    ├── PortInUse           an endpoint is taken; names it
    ├── StoreFull           the disk is full: free some space, nothing was lost
    ├── StoreCorrupt        the journal or an object is damaged: stop, restore a backup
    ├── MergeError          updates or adapters cannot be merged (:mod:`aggregator.merge`)
    └── AdapterError        the folder of an adapter cannot be used or written
        └── PeftError       its contents are no PEFT adapter that can be used (:mod:`aggregator.adapters.peft_config`)

What a client does wrong is a :class:`protocol.errors.RemoteProtocolError` instead: it is answered, never raised to
the operator.
"""

from __future__ import annotations

__all__ = [
    "AdapterError",
    "AggregatorError",
    "ConfigError",
    "HomeError",
    "HomeInUse",
    "PortInUse",
    "StoreCorrupt",
    "StoreFull",
]


class AggregatorError(Exception):
    """Root of everything the aggregator raises."""


class ConfigError(AggregatorError):
    """An argument or a file of the operator's is wrong."""


class HomeError(AggregatorError):
    """The home folder cannot be used."""


class HomeInUse(HomeError):  # noqa: N818 - the family names a condition
    """Another process owns the home."""


class PortInUse(AggregatorError):  # noqa: N818
    """An endpoint is taken by another program."""


class StoreFull(AggregatorError):  # noqa: N818
    """The disk is full."""


class StoreCorrupt(AggregatorError):  # noqa: N818
    """The journal or an object is damaged."""


class AdapterError(AggregatorError):
    """The folder of an adapter cannot be used, or not be written."""
