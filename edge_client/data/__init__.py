"""Local data: sources, what a task makes of a row, batches."""
