"""The client SDK: embeds federated fine-tuning in an app on the device that holds the data."""

import edge_client._siblings  # noqa: F401  (says so at once if a foreign package shadows ours)
from edge_client.client import EdgeClient
from edge_client.errors import (
    AggregatorError,
    BaseModelError,
    ConfigError,
    DataError,
    EdgeClientError,
    NotEnrolledError,
    TicketError,
)
from edge_client.exported import ExportedModel, load_exported
from edge_client.session.activities import Phase
from edge_client.status import RoundResult, RunSummary, Status
from edge_client.trainer import Cancelled, LocalResult, Progress, Trainer, TrainerInfo
from edge_client.trainer_hook import federate

__all__ = [
    "AggregatorError",
    "BaseModelError",
    "Cancelled",
    "ConfigError",
    "DataError",
    "EdgeClient",
    "EdgeClientError",
    "ExportedModel",
    "LocalResult",
    "NotEnrolledError",
    "Phase",
    "Progress",
    "RoundResult",
    "RunSummary",
    "Status",
    "TicketError",
    "Trainer",
    "TrainerInfo",
    "federate",
    "load_exported",
]
