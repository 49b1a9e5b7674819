"""One round: a pure function from the cohort's updates to the next state and its report, one module at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from aggregator.merge.bias import bias_of_mean_handout
from aggregator.merge.cohort import Cohort
from aggregator.merge.encoded import factors_of_adapter
from aggregator.merge.errors import MergeError
from aggregator.merge.handout import handout_errors
from aggregator.merge.module import Changes, MergedModule, merge_module
from aggregator.merge.module_state import ModuleState
from aggregator.merge.opened import merge_here
from aggregator.merge.report import DenseReport, MergeReport, ModuleReport
from aggregator.merge.scratch import Scratch
from aggregator.merge.state import GlobalState
from aggregator.merge.updates import ClientUpdate, check_handout

if TYPE_CHECKING:
    from aggregator.merge.encoded import EncodedAdapter
    from protocol.manifest import LowRankModule, Manifest
    from protocol.payload import AdapterTensors, Layout

__all__ = ["Round", "merge_round", "report_merged", "report_module"]


@dataclass(frozen=True, kw_only=True)
class Round:
    """All that a merge reads, checked. Make it with :meth:`of`."""

    state: GlobalState
    """The version that was handed out."""
    manifest: Manifest
    """The run's universe."""
    handout: AdapterTensors | EncodedAdapter
    """That version's hand-out, as it was sent."""
    stale: Mapping[int, AdapterTensors | EncodedAdapter]
    """Hand-outs of earlier versions, by staleness."""
    cohort: Cohort
    """The updates."""
    server_learning_rate: float
    """``η``."""
    report_ranks: tuple[int, ...]
    """Ranks to report on besides those of the cohort."""
    rank_cap: int | None
    """Rank that every module is kept within; None: exact."""
    scratch: Path | None
    """Folder for what is large; None: memory."""

    @classmethod
    def of(
        cls,
        state: GlobalState,
        manifest: Manifest,
        handout: AdapterTensors | EncodedAdapter,
        updates: Iterable[ClientUpdate],
        *,
        server_learning_rate: float = 1.0,
        report_ranks: Iterable[int] = (),
        rank_cap: int | None = None,
        scratch: Path | None = None,
        stale: Mapping[int, AdapterTensors | EncodedAdapter] | None = None,
    ) -> Self:
        """Checks what is to be merged; arguments and errors as of :func:`merge_round`."""
        if not (math.isfinite(server_learning_rate) and server_learning_rate > 0):
            raise MergeError(f"the server learning rate must be positive and finite, got {server_learning_rate}")
        if rank_cap is not None and rank_cap < 1:
            raise MergeError(f"a cap keeps at least rank 1, got {rank_cap}")
        check_handout(handout, manifest)
        cohort = Cohort.of(updates, manifest, handout.rank)
        earlier = dict(stale or {})
        _check_stale(earlier, handout, manifest, cohort)
        return cls(
            state=state,
            manifest=manifest,
            handout=handout,
            stale=earlier,
            cohort=cohort,
            server_learning_rate=server_learning_rate,
            report_ranks=tuple(report_ranks),
            rank_cap=rank_cap,
            scratch=scratch,
        )

    @cached_property
    def _layout(self) -> Layout:
        return check_handout(self.handout, self.manifest)

    def width(self, module: LowRankModule) -> int:
        """Terms of one module's sum, of state and cohort."""
        first_order = 2 * self.handout.rank * (1 + len(self._behind))
        return self.state.width(module.name) + self.cohort.width(module) + first_order

    def merge_module(self, module: LowRankModule) -> tuple[ModuleState, ModuleReport]:
        """The next offset of one module, and its report; it depends on no other module's."""
        merged = merge_module(
            self.state.low_rank[module.name],
            *self._changes(module, 0, self.handout),
            width=self.cohort.width(module) + 2 * self.handout.rank * len(self._behind),
            step=self.server_learning_rate,
            cap=self.rank_cap,
            scratch=Scratch(self.scratch),
            stale=(self._changes(module, staleness, self.stale[staleness]) for staleness in self._behind),
        )
        ranks = {rank for rank in (*self.report_ranks, *self.cohort.ranks) if rank <= self.handout.rank}
        return merged.state, report_merged(module.name, merged, ranks, self.cohort.retention(module))

    @property
    def _behind(self) -> list[int]:
        return [staleness for staleness in self.cohort.stalenesses if staleness]

    def _changes(self, module: LowRankModule, staleness: int, handout: AdapterTensors | EncodedAdapter) -> Changes:
        handed = factors_of_adapter(handout, self._layout, module.name)
        return Changes(handed, self.cohort.shares(module, staleness))

    def finish(self, modules: Mapping[str, tuple[ModuleState, ModuleReport]]) -> tuple[GlobalState, MergeReport]:
        """The next state from its modules: the dense tensors are merged here."""
        steps = {t.name: self.server_learning_rate * self.cohort.mean(t) for t in self.manifest.dense}
        dense = {name: self.state.dense[name] + step for name, step in steps.items()}
        report = MergeReport(
            clients=len(self.cohort.members),
            total_weight=self.cohort.total_weight,
            modules=tuple(modules[module.name][1] for module in self.manifest.low_rank),
            dense=tuple(
                DenseReport(
                    name=name, norm=float(np.linalg.norm(value)), update_norm=float(np.linalg.norm(steps[name]))
                )
                for name, value in dense.items()
            ),
        )
        low_rank = {module.name: modules[module.name][0] for module in self.manifest.low_rank}
        return GlobalState(low_rank=low_rank, dense=dense), report


def merge_round(
    state: GlobalState,
    manifest: Manifest,
    handout: AdapterTensors | EncodedAdapter,
    updates: Iterable[ClientUpdate],
    *,
    server_learning_rate: float = 1.0,
    report_ranks: Iterable[int] = (),
    rank_cap: int | None = None,
    scratch: Path | None = None,
    stale: Mapping[int, AdapterTensors | EncodedAdapter] | None = None,
) -> tuple[GlobalState, MergeReport]:
    """``M' = M + η·Σ p_i·s(τ_i)·D_i`` with ``p_i = num_examples_i / Σ num_examples`` and ``s(τ) = 1/√(1+τ)``.

    ``D_i`` is what a device changed against the version that it was handed. In a synchronous round that is the live
    one for all, and ``s(0) = 1``.

    The result is a pure function of the arguments, whatever the order of ``updates``: with one BLAS thread, bit-equal
    on one machine; across machines, equal to rounding.

    Args:
        state: The version that was handed out.
        manifest: The run's universe.
        handout: That version's hand-out, decoded from what was sent or as it is stored, at least as many slots as any
            update has.
        updates: The cohort, in any order. Updates whose tensors are encoded are read module by module: memory then
            does not grow with their number.
        server_learning_rate: ``η``.
        report_ranks: Further ranks to report hand-out errors for, up to the hand-out's; those of the cohort are always
            in.
        rank_cap: Keep every module within this rank and certify what that drops; None: the state is exact.
        scratch: Folder for arrays of more than :data:`~aggregator.merge.scratch.RESIDENT_BYTES`; None: memory.
        stale: Hand-outs of earlier versions, as many slots each, by staleness: all that an update was trained from;
            None: all updates are against the live one.

    Returns:
        The next state and what happened.

    Raises:
        MergeError: The cohort is empty, or an update does not fit. The state, a value, is as it was.
    """
    given = Round.of(
        state,
        manifest,
        handout,
        updates,
        server_learning_rate=server_learning_rate,
        report_ranks=report_ranks,
        rank_cap=rank_cap,
        scratch=scratch,
        stale=stale,
    )
    return merge_here(given)


def report_module(name: str, state: ModuleState, update_norm: float, ranks: Iterable[int]) -> ModuleReport:
    """The report of one low-rank module that no cohort was merged into.

    Args:
        name: Module.
        state: Its offset after the merge.
        update_norm: Norm of what the merge added.
        ranks: Ranks to give hand-out errors for.
    """
    ranks = sorted({1, *ranks})
    merged = MergedModule(state=state, leading=state.leading(ranks[-1]), update_norm=update_norm, bias=None)
    return report_merged(name, merged, ranks, {})


def report_merged(
    name: str, merged: MergedModule, ranks: Iterable[int], retention: Mapping[int, float]
) -> ModuleReport:
    """The report of one low-rank module.

    Args:
        name: Module.
        merged: It, after the merge.
        ranks: Ranks to give hand-out errors for.
        retention: ``P_r`` by rank; empty if no cohort was merged.
    """
    leading, state = merged.leading, merged.state
    return ModuleReport(
        name=name,
        rank=state.width if leading.spectrum is None else len(leading.spectrum),
        effective_rank=leading.effective_rank(state.width),
        norm=leading.norm,
        update_norm=merged.update_norm,
        merge_error=state.discarded / leading.norm if leading.norm else 0.0,
        merge_bias=merged.bias,
        handout_error=handout_errors(leading, ranks),
        retention=retention,
        handout_bias=bias_of_mean_handout(leading, retention) if retention else None,
    )


def _check_stale(
    stale: Mapping[int, AdapterTensors | EncodedAdapter],
    handout: AdapterTensors | EncodedAdapter,
    manifest: Manifest,
    cohort: Cohort,
) -> None:
    """Checks the hand-outs of earlier versions.

    Raises:
        MergeError: One that an update was trained from is missing, is of another run, or has other slots than the
            live one.
    """
    for staleness in cohort.stalenesses:
        if staleness and staleness not in stale:
            raise MergeError(f"an update is {staleness} versions behind: pass on what was handed out {staleness} ago")
    for each in stale.values():
        check_handout(each, manifest)
        if each.rank != handout.rank:
            raise MergeError(f"an earlier hand-out has {each.rank} slots, the live one {handout.rank}")
