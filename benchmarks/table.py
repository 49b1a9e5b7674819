"""Prints aligned tables for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["format_bytes", "format_table"]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart: the first flush left, the others flush right.

    Example:
        >>> print(format_table(["model", "MRR"], [["zero-shot", ".476"], ["all", ".5"]]))
        model       MRR
        zero-shot  .476
        all          .5
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(_line(line, widths) for line in lines)


def format_bytes(count: int) -> str:
    """Bytes as people read them.

    Example:
        >>> [format_bytes(n) for n in (999, 1500, 2_500_000)]
        ['999 B', '1.5 kB', '2.5 MB']
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if not column else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
