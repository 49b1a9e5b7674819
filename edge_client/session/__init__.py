"""The client's side of a run: a pure engine that decides, and the thin driver that does its I/O."""
