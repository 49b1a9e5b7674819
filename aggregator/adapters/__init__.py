"""Plain PEFT folders: read, written, merged, and turned into a run's state and back."""
