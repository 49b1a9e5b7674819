"""The merge alone: pure functions, NumPy in, NumPy out; files only where large arrays are asked to lie in some."""

from aggregator.merge.algebra import Compressed, Factors, LowRank, compress, decompose, stack
from aggregator.merge.bias import Bias, measure_bias
from aggregator.merge.cohort import Cohort, Share
from aggregator.merge.encoded import EncodedAdapter
from aggregator.merge.errors import MergeError
from aggregator.merge.handout import handout_errors, make_handout, slot_factors
from aggregator.merge.leading import Leading
from aggregator.merge.module import Changes, MergedModule, merge_module
from aggregator.merge.module_state import ModuleState
from aggregator.merge.report import DenseReport, MergeReport, ModuleReport
from aggregator.merge.rounds import Round, merge_round, report_module
from aggregator.merge.scratch import Scratch
from aggregator.merge.state import GlobalState, Increment
from aggregator.merge.updates import ClientUpdate, check_update

__all__ = [
    "Bias",
    "Changes",
    "ClientUpdate",
    "Cohort",
    "Compressed",
    "DenseReport",
    "EncodedAdapter",
    "Factors",
    "GlobalState",
    "Increment",
    "Leading",
    "LowRank",
    "MergeError",
    "MergeReport",
    "MergedModule",
    "ModuleReport",
    "ModuleState",
    "Round",
    "Scratch",
    "Share",
    "check_update",
    "compress",
    "decompose",
    "handout_errors",
    "make_handout",
    "measure_bias",
    "merge_module",
    "merge_round",
    "report_module",
    "slot_factors",
    "stack",
]
