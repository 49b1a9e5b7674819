"""Local training: objectives, schedule, loop, metrics."""
