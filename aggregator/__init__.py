"""The aggregator daemon: merges the devices' updates exactly and hands every device the adapter it can hold."""

from aggregator import _siblings as _siblings  # first: it explains a foreign `protocol`
