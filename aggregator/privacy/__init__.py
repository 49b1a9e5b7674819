"""Central differential privacy: each device's update clipped as a whole, noise from a secret seed, and the cost."""
