"""The client SDK: embeds federated fine-tuning in an app on the device that holds the data."""

from edge_client import _siblings as _siblings  # first: it explains a foreign `protocol`
