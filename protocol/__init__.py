"""What travels between a device and the aggregator, and when it may: sans-IO, without sockets, clock or torch."""
