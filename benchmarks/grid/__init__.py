"""Many runs of one experiment: several at a time, each stored as soon as it is finished, none of them run twice."""

from benchmarks.grid.cell_file import CellFile, Conditions, Record, cell_of, title
from benchmarks.grid.runner import one_thread, or_failure, run_cells
from benchmarks.grid.settings import GridSettings

__all__ = [
    "CellFile",
    "Conditions",
    "GridSettings",
    "Record",
    "cell_of",
    "one_thread",
    "or_failure",
    "run_cells",
    "title",
]
