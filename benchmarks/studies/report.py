"""Turns a study's records into what the terminal shows and what the result file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.data.tasks import TASKS
from benchmarks.grid import Record, cell_of, title
from benchmarks.studies.claims import Finding, Verdict, scores_of
from benchmarks.studies.design import Cell, Preset, Study
from benchmarks.studies.targets import target_table
from benchmarks.table import format_bytes, format_table

__all__ = ["findings", "rows", "tables", "unchecked"]

_REFERENCE = "full"
"""The arm that others' counts are compared with."""


def tables(study: Study, preset: Preset, records: Sequence[Record]) -> str:
    """A table for each condition, then the claims.

    Scores are per cent on the test rows, mean and standard deviation over seeds; where some seeds are not run yet, or
    diverged, over how many. Tuned: values that a device trains, and what part that is of full fine-tuning. Bytes: of
    all devices together over the run, both ways, as counted on the simulated wire. Rounds: to the version that
    validates best. ε: the most that any device paid, where training is private. Then, what it takes to a target that is
    the same for all arms (:mod:`.targets`).
    """
    arms, conditions = list(preset.arms or study.arms), preset.conditions or study.conditions
    parts = [
        table
        for name in conditions
        for table in (_condition_table(study, preset, records, name), target_table(arms, records, name))
    ]
    failed = [f"{title(cell_of(record, Cell))}: {record['failure']}" for record in records if "failure" in record]
    return "\n\n".join([*filter(None, parts), _claim_table(findings(study, records)), *failed])


def findings(study: Study, records: Sequence[Record]) -> list[Finding]:
    """What came of every claim."""
    return [claim.check(records) for claim in study.claims]


def unchecked(study: Study, preset: Preset, records: Sequence[Record]) -> int:
    """Claims about arms and conditions of this preset that there are not enough runs for."""
    arms, conditions = set(preset.arms or study.arms), set(preset.conditions or study.conditions)
    about = [
        claim
        for claim in study.claims
        if all(arm in arms and condition in conditions for arm, condition in claim.sides)
    ]
    return sum(claim.check(records).verdict is Verdict.NOT_RUN for claim in about)


def rows(study: Study, records: Sequence[Record]) -> Iterator[Record]:
    """Everything measured, then the claims."""
    yield from ({"kind": "run", **record} for record in records)
    yield from ({"kind": "claim", **asdict(finding)} for finding in findings(study, records))


def _condition_table(study: Study, preset: Preset, records: Sequence[Record], condition: str) -> str:
    here = [record for record in records if record["condition"] == condition and "failure" not in record]
    if not here:
        return ""
    header = [condition, *(f"{task}, {TASKS[task].metric}" for task in preset.tasks)]
    header += ["tuned", "of full", "bytes", "rounds", "rate"]
    private = [record for record in here if "epsilon" in record]
    header += ["ε"] * bool(private)
    lines = []
    for arm in preset.arms or study.arms:
        of_arm = [record for record in here if record["arm"] == arm]
        if of_arm:
            scores = (_score(here, arm, condition, task, preset.seeds) for task in preset.tasks)
            spent = max((record["epsilon"] for record in of_arm if "epsilon" in record), default=None)
            epsilon = ["-" if spent is None else f"{spent:.2f}"] * bool(private)
            lines.append([arm, *scores, *_costs(of_arm, here), *epsilon])
    return format_table(header, lines)


def _score(records: Sequence[Record], arm: str, condition: str, task: str, seeds: int) -> str:
    values = [100 * value for (of, _), value in scores_of(records, arm, condition).items() if of == task]
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}" + (f" ({len(values)} of {seeds})" if len(values) < seeds else "")


def _costs(of_arm: Sequence[Record], here: Sequence[Record]) -> Iterator[str]:
    tuned = of_arm[0]["tuned"]
    full = next((record["tuned"] for record in here if record["arm"] == _REFERENCE), None)
    yield f"{tuned:,}"
    yield "-" if full is None else f"1/{full / tuned:.1f}"
    traffic = [record["bytes_up"] + record["bytes_down"] for record in of_arm if "bytes_up" in record]
    yield format_bytes(round(np.mean(traffic))) if traffic else "-"
    best = [record["best"]["round"] for record in of_arm if "best" in record]
    yield f"{np.mean(best):.0f}" if best else "-"
    yield ", ".join(f"{rate:g}" for rate in sorted({record["learning_rate"] for record in of_arm}))


def _claim_table(found: Sequence[Finding]) -> str:
    lines = [[each.what, each.verdict, *_difference(each), str(each.pairs)] for each in found]
    return format_table(["claim", "here", "by points", "95 % interval", "pairs"], lines)


def _difference(finding: Finding) -> tuple[str, str]:
    found = finding.found
    if found is None:
        return "-", "-"
    return f"{100 * found.difference:+.1f}", f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
