"""The aggregator daemon: merges the devices' updates exactly and hands every device the adapter it can hold."""
