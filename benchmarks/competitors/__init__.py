"""Ways to merge adapters as others published them, for the benchmarks to stand beside; nothing here is improved."""
