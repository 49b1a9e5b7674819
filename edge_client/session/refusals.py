"""What a NACK of the aggregator means to the app, and what may leave the device when the device itself fails."""

from __future__ import annotations

from edge_client.errors import (
    AggregatorError,
    BaseModelError,
    ConfigError,
    DataError,
    EdgeClientError,
    NotEnrolledError,
    TicketError,
)
from protocol import limits
from protocol.errors import NackCode

__all__ = ["decline_reason", "error_of"]

_ERRORS: dict[NackCode, type[EdgeClientError]] = {
    NackCode.NOT_ENROLLED: NotEnrolledError,
    NackCode.REVOKED: NotEnrolledError,
    NackCode.TICKET: TicketError,
    NackCode.WRONG_RUN: TicketError,
    NackCode.WRONG_BASE: BaseModelError,
    NackCode.RANK: ConfigError,
    NackCode.NUM_EXAMPLES: DataError,
    NackCode.NUM_EXAMPLES: DataError,
}


def error_of(code: NackCode, reason: str) -> EdgeClientError:
    """The error that a terminal refusal becomes."""
    return _ERRORS.get(code, AggregatorError)(f"the aggregator refused ({code}): {reason}")


def decline_reason(error: Exception) -> str:
    """What the operator is told of a local failure.

    The message of a data error may quote data, and that of a foreign error anything: these stay on the device.

    Example:
        >>> decline_reason(DataError("notes.jsonl, line 3: my diary"))
        'DataError: the details are on the device'
    """
    quotable = isinstance(error, EdgeClientError) and not isinstance(error, DataError)
    text = str(error) if quotable else "the details are on the device"
    return f"{type(error).__name__}: {text}"[: limits.REASON_MAX_CHARS]
