"""Measures: every contender on every case in turns, the memory of cohorts that grow, and a whole decoder layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from aggregator.merge import MergedModule
from benchmarks.merge.cohorts import StoredCase, store_case
from benchmarks.merge.contenders import Contender, Prepared, prepare
from benchmarks.merge.floor import floor_seconds
from benchmarks.merge.memory import everything_kept, peak_bytes, streamed
from benchmarks.merge.ours import merge_ours
from benchmarks.merge.settings import LAYER_RANKS, RANKS, Case, Preset, Problem

__all__ = ["Cell", "LayerTime", "MemoryUse", "one_thread", "run_case", "run_layer", "run_memory"]

_SVD_RATE = 20e9
"""Operations a second that a dense decomposition is expected to make, to tell which are run once."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One contender on one case."""

    case: Case
    """What was merged."""
    contender: str
    """Who."""
    seconds: tuple[float, ...]
    """Each run."""
    error: float
    """``‖M − T‖ / ‖M‖``, in float64."""
    floor_s: float | None = None
    """Bare BLAS and LAPACK calls of ours."""
    state_error: float | None = None
    """Of the exact state: distance from the float64 sum, over its norm."""

    @property
    def median_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Anonymous memory of one merge."""

    clients: int
    """Cohort."""
    streamed_bytes: int
    """Ours."""
    kept_bytes: int
    """With everything kept."""


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """The merge of one decoder layer's linear modules, one after the other."""

    modules: tuple[tuple[int, int], ...]
    """Shapes."""
    clients: int
    """Cohort."""
    seconds: float
    """All modules."""
    peak_bytes: int
    """Most anonymous memory of any of them."""
    update_bytes: int
    """What the cohort sent of this layer."""


def run_case(case: Case, preset: Preset, seed: int, say: Callable[[str], None]) -> list[Cell]:
    """Times every contender on one case, in turns; says who cannot take part, and why."""
    with TemporaryDirectory(prefix="tributary-merge-") as folder:
        stored = store_case(case, RANKS, preset.slots, seed, Path(folder))
        taking_part, left_out = prepare(stored, preset.slots, Path(folder))
        for name, reason in left_out.items():
            say(f"  {name} is left out: {reason}")
        spent: dict[Contender, list[float]] = {one.name: [] for one in taking_part}
        results: dict[Contender, object] = {}
        for repeat in range(preset.repeats):
            for one in taking_part:
                if repeat == 0 or not _is_slow(one.name, case, spent[one.name], preset):
                    start = time.perf_counter()
                    results[one.name] = one.run()
                    spent[one.name].append(time.perf_counter() - start)
        return list(_cells(stored, taking_part, spent, results, preset.slots))


def run_memory(preset: Preset, seed: int) -> Iterator[MemoryUse]:
    """Watches merges of ever larger cohorts."""
    for clients in preset.memory_clients:
        case = Case(shape=preset.memory_shape, clients=clients, problem=Problem.DELTA)
        with TemporaryDirectory(prefix="tributary-merge-") as folder:
            stored = store_case(case, RANKS, preset.slots, seed, Path(folder))
            yield MemoryUse(
                clients=clients,
                streamed_bytes=peak_bytes(streamed, stored, Path(folder)),
                kept_bytes=peak_bytes(everything_kept, stored, Path(folder)),
            )


def run_layer(modules: Sequence[tuple[int, int]], clients: int, slots: int, seed: int) -> LayerTime:
    """Merges the linear modules of one decoder layer, one after the other."""
    seconds, peaks, sent = 0.0, [], 0
    for shape in modules:
        case = Case(shape=shape, clients=clients, problem=Problem.DELTA)
        with TemporaryDirectory(prefix="tributary-merge-") as folder:
            stored = store_case(case, LAYER_RANKS, slots, seed, Path(folder))
            sent += sum(path.stat().st_size for path in Path(folder).iterdir())
            start = time.perf_counter()
            merge_ours(stored, Path(folder))
            seconds += time.perf_counter() - start
            peaks.append(peak_bytes(streamed, stored, Path(folder)))
    return LayerTime(modules=tuple(modules), clients=clients, seconds=seconds, peak_bytes=max(peaks), update_bytes=sent)


def one_thread() -> threadpool_limits:
    """Everyone computes with one thread; torch is told, NumPy's BLAS is held to it by what this returns."""
    torch.set_num_threads(1)
    return threadpool_limits(1)


def _is_slow(name: Contender, case: Case, spent: Sequence[float], preset: Preset) -> bool:
    decomposes = name in (Contender.DENSE, Contender.PEFT)
    expected = 22 * min(case.shape) ** 3 / _SVD_RATE if decomposes else 0.0
    return max(*spent, expected, 0.0) > preset.slow_s


def _cells(
    stored: StoredCase,
    taking_part: Sequence[Prepared],
    spent: dict[Contender, list[float]],
    results: dict[Contender, object],
    slots: int,
) -> Iterator[Cell]:
    exact = _exact(stored)
    norm = float(np.linalg.norm(exact))
    for one in taking_part:
        B, A = one.factors(results[one.name])
        error = float(np.linalg.norm(exact - B @ A)) / norm
        extra: dict[str, float] = {}
        merged = results[one.name]
        if isinstance(merged, MergedModule):
            value = merged.state.value
            held = value if isinstance(value, np.ndarray) else merged.state.factors().dense()
            extra = {
                "state_error": float(np.linalg.norm(held - exact)) / norm,
                "floor_s": floor_seconds(stored, merged, slots),
            }
        yield Cell(case=stored.case, contender=str(one.name), seconds=tuple(spent[one.name]), error=error, **extra)


def _exact(stored: StoredCase) -> np.ndarray:
    """The sum by its definition, in float64, from the products that nobody nested or stacked."""
    total = stored.base.factors().dense()
    B, A = (part.astype(np.float64) for part in stored.handed)
    for weight, dB, dA in stored.cohort().shares(stored.module):
        rank = dA.shape[0]
        total += weight * ((B[:, :rank] + dB) @ (A[:rank] + dA) - B[:, :rank] @ A[:rank])
    return total
