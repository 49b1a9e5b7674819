"""The merge inside other people's frameworks: one file per framework, each behind an extra of its name."""
