"""The merge alone: pure functions, NumPy in, NumPy out, no file, socket or clock."""

from aggregator.merge.algebra import Compressed, Factors, LowRank, compress, decompose, stack
from aggregator.merge.delta import ClientUpdate, DeltaAccumulator, check_update
from aggregator.merge.errors import MergeError
from aggregator.merge.handout import handout_errors, make_handout, slot_factors
from aggregator.merge.report import DenseReport, MergeReport, ModuleReport
from aggregator.merge.rounds import merge_round, report_module
from aggregator.merge.state import GlobalState, Increment, ModuleState

__all__ = [
    "ClientUpdate",
    "Compressed",
    "DeltaAccumulator",
    "DenseReport",
    "Factors",
    "GlobalState",
    "Increment",
    "LowRank",
    "MergeError",
    "MergeReport",
    "ModuleReport",
    "ModuleState",
    "check_update",
    "compress",
    "decompose",
    "handout_errors",
    "make_handout",
    "merge_round",
    "report_module",
    "slot_factors",
    "stack",
]
