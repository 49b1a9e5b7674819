"""What the SDK raises, and who can act on it.

::

    EdgeClientError
    ├── ConfigError          an argument of yours is wrong (all faults gathered in one message)
    ├── DataError            a data file or row is wrong; names file and line
    ├── BaseModelError       the base model cannot be loaded, or is not the run's
    ├── TicketError          the ticket cannot be read, is expired, used up, or for another run
    ├── NotEnrolledError     the aggregator does not know this device's key, or revoked it
    ├── PrivacyError         what is asked would tell of this device's data without the noise agreed on
    │   └── BudgetSpentError     its privacy budget does not last for another round
    └── AggregatorError      the aggregator refused for good, or broke the protocol
"""

from __future__ import annotations

__all__ = [
    "AggregatorError",
    "BaseModelError",
    "BudgetSpentError",
    "ConfigError",
    "DataError",
    "EdgeClientError",
    "NotEnrolledError",
    "PrivacyError",
    "TicketError",
]


class EdgeClientError(Exception):
    """Root of everything the SDK raises."""


class ConfigError(EdgeClientError):
    """An argument is wrong: yours to mend."""


class DataError(EdgeClientError):
    """A data file or row is wrong; the message names file, line and field."""


class BaseModelError(EdgeClientError):
    """The base model cannot be loaded, or is not the one the run tunes."""


class TicketError(EdgeClientError):
    """The ticket cannot be read, is expired, used up, or for another run: ask the operator for a new one."""


class NotEnrolledError(EdgeClientError):
    """The aggregator does not know this device's key, or has revoked it: ask the operator."""


class PrivacyError(EdgeClientError):
    """What is asked would tell of this device's data without the noise that the run or the device asks for."""


class BudgetSpentError(PrivacyError):
    """The privacy budget does not last for another round: the device trains no more, and waits for the run's end."""


class AggregatorError(EdgeClientError):
    """The aggregator refused for good, or broke the protocol."""
