"""A device's folder: its key, what it fetched, and what it has yet to deliver, all of it durable."""
