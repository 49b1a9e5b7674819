"""The command line: ``python -m benchmarks NAME [flags]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.command_line import run_command

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one benchmark and returns the exit code: 0 done, 1 failed, 2 a mistake on the command line."""
    from edge_client.model.quiet import silence_kernel_hint

    silence_kernel_hint()
    return run_command(sys.argv[1:] if arguments is None else list(arguments))


if __name__ == "__main__":
    sys.exit(main())
