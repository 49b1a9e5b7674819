"""Many runs of one experiment: several at a time, each stored as soon as it is finished, none of them run twice."""

from benchmarks.grid.cell_file import CellFile, Conditions, Record, cell_of, title
from benchmarks.grid.runner import one_thread, or_failure, run_cells
from benchmarks.grid.settings import GridSettings
from benchmarks.grid.workers import Processes, Ray, Workers, read_workers

__all__ = [
    "CellFile",
    "Conditions",
    "GridSettings",
    "Processes",
    "Ray",
    "Record",
    "Workers",
    "cell_of",
    "one_thread",
    "or_failure",
    "read_workers",
    "run_cells",
    "title",
]
