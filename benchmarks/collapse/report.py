"""Turns courses into what the terminal shows, what the goals judge and what the result file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.collapse.experiment import CASES, Course
from benchmarks.collapse.settings import PARTICIPATIONS, ROUNDS
from benchmarks.table import format_table

__all__ = ["curves", "measurements", "rows", "table"]

_ROUNDING = 1e-12
"""Relative change up to which a model counts as unchanged: float64 rounding."""


def measurements(courses: Sequence[Course]) -> dict[str, float]:
    """What ``targets.toml`` sets goals for."""
    delta = [course for course in courses if course.strategy.startswith("delta")]
    wrong = [course for course in courses if course.declared_no_op != (max(course.change) <= _ROUNDING)]
    return {
        "delta_change": max(max(course.change) for course in delta),
        "misdeclared": len({course.strategy for course in wrong}),
    }


def rows(courses: Sequence[Course]) -> Iterator[dict[str, object]]:
    """Everything measured, one mapping a course, to six digits."""
    for course in courses:
        yield {
            "strategy": course.strategy,
            "seed": course.seed,
            "participation": course.participation,
            "norm": _rounded(course.norm),
            "change": _rounded(course.change),
            "spectrum": _rounded(course.spectrum),
        }


def curves(courses: Sequence[Course], participation: float) -> dict[str, np.ndarray]:
    """``‖M_t‖/‖M_0‖`` by round, the mean over seeds, of every strategy."""
    return {
        name: np.mean([c.norm for c in courses if (c.strategy, c.participation) == (name, participation)], axis=0)
        for name in CASES
    }


def table(courses: Sequence[Course]) -> str:
    """What is left of the model after 1, 5 and all rounds, in per cent of its norm, and how far it moved."""
    header = [
        "left of the model, %",
        *(f"{p:.0%}: round {t}" for p in PARTICIPATIONS for t in (1, 5, ROUNDS)),
        "moved, %",
    ]
    lines = []
    for name in CASES:
        cells = [f"{100 * curves(courses, p)[name][t]:.1f}" for p in PARTICIPATIONS for t in (1, 5, ROUNDS)]
        moved = max(max(course.change) for course in courses if course.strategy == name)
        lines.append([name, *cells, "0" if moved == 0 else f"{100 * moved:.2g}"])
    return format_table(header, lines)


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
