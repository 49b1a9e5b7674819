"""What the studies of published systems share: one federation from data to scores, whatever is tuned and how."""
