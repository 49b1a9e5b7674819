"""Updates on their way in: what is taken, how far it is, and when it is durable."""
