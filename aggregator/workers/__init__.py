"""The workers: what is too slow for the daemon's loop runs beside it, and wakes it when done."""
