"""Turns findings into what the terminal shows and what the result file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

import numpy as np

from benchmarks.attacks.experiment import ATTACKS, FREQUENT, ROUNDS, Finding
from benchmarks.leads import mean_lead
from benchmarks.studies.claims import Verdict
from benchmarks.table import format_table

__all__ = ["PUBLISHED", "claims", "mean_f1", "measurements", "rows", "table"]

PUBLISHED: Mapping[str, Mapping[int, float]] = MappingProxyType(
    {
        "full": {1: 0.930, 2: 0.425, 4: 0.408, 8: 0.220, 16: 0.200, 32: 0.177},
        "adapter": {1: 0.678, 2: 0.393, 4: 0.240, 8: 0.128, 16: 0.099, 32: 0.084},
        "bitfit": {1: 0.202, 2: 0.092, 4: 0.065, 8: 0.059, 16: 0.060, 32: 0.051},
        "prefix": {1: 0.171, 2: 0.077, 4: 0.072, 8: 0.061, 16: 0.052, 32: 0.050},
        "lora r=8": {1: 0.120, 2: 0.061, 4: 0.052, 8: 0.051, 16: 0.050, 32: 0.048},
    }
)
"""F1 of FedPETuning's DLG on RoBERTa-base, by batch size, from the plot scripts that its authors released. It is DLG on
another model, on short texts rich in digits, of the gradients of an encoder's output instead of a loss."""

_CLAIMED = (("full", "adapter"), ("adapter", "lora r=8"), ("adapter", "prefix"), ("adapter", "bitfit"))
"""What FedPETuning says that DLG reads more of, and less."""


def measurements(findings: Sequence[Finding]) -> dict[str, float]:
    """What ``targets.toml`` sets goals for; nothing where one seed leaves no pairs to compare."""
    if len({finding.seed for finding in findings}) < 2:
        return {}
    return {"claims_unchecked": sum(len(_leads(findings, *pair)) < 2 for pair in _CLAIMED)}


def claims(findings: Sequence[Finding]) -> Iterator[str]:
    """What became of the published orderings, a line each: DLG's F1 on the first round's gradients, text by text."""
    for above, below in _CLAIMED:
        leads = _leads(findings, above, below)
        said = f"DLG reads more of {above} than of {below}:"
        if len(leads) < 2:
            yield f"{said} {Verdict.NOT_RUN}"
            continue
        lead = mean_lead(np.array(leads))
        verdict = Verdict.HOLDS if lead.low > 0 else Verdict.FAILS if lead.high < 0 else Verdict.OPEN
        yield f"{said} {verdict} ({lead.difference:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}], {len(leads)} pairs)"


def rows(findings: Sequence[Finding]) -> Iterator[dict[str, object]]:
    """Everything measured, one mapping an attack."""
    for finding in findings:
        flat = {name: value for name, value in asdict(finding).items() if name not in ("scores", "seconds")}
        found = asdict(finding.scores) if finding.scores is not None else {}
        scores = {name: None if value is None else round(value, 4) for name, value in found.items()}
        yield {**flat, **scores, "applies": finding.scores is not None, "seconds": round(finding.seconds, 2)}


def mean_f1(findings: Sequence[Finding], **chosen: object) -> float | None:
    """Mean F1 over seeds of the findings with these fields; None: there are none, or the attack does not apply."""
    found = [
        finding.scores.f1
        for finding in findings
        if finding.scores is not None and all(getattr(finding, name) == value for name, value in chosen.items())
    ]
    return float(np.mean(found)) if found else None


def table(findings: Sequence[Finding]) -> str:
    """Precision/recall/F1 of every attack on every method, the mean over seeds, beside the published F1 of DLG."""
    header = ["attacked, of which", *(f"{name}: P/R/F1" for name in ATTACKS), FREQUENT, "published DLG"]
    lines = []
    for arm, batch in dict.fromkeys((finding.arm, finding.batch) for finding in findings):
        mine = [finding for finding in findings if (finding.arm, finding.batch) == (arm, batch)]
        guess = _cell([finding for finding in mine if finding.attack == FREQUENT])
        published = PUBLISHED.get(arm, {}).get(batch)
        for number in ROUNDS:
            for view in dict.fromkeys(finding.view for finding in mine):
                here = [finding for finding in mine if (finding.round, finding.view) == (number, view)]
                cells = [_cell([finding for finding in here if finding.attack == name]) for name in ATTACKS]
                last = "" if published is None or view != "gradient" else f"{published:.3f}"
                lines.append([f"{arm}, {batch}: {number} round's {view}", *cells, guess, last])
    return format_table(header, lines)


def _cell(findings: Sequence[Finding]) -> str:
    """Blank: not tried; a dash: nothing to look at."""
    if not findings:
        return ""
    found = [finding.scores for finding in findings if finding.scores is not None]
    if not found:
        return "-"
    means = np.mean([(scores.precision, scores.recall, scores.f1) for scores in found], axis=0)
    return "/".join(f"{mean:.2f}" for mean in means)


def _leads(findings: Sequence[Finding], above: str, below: str) -> list[float]:
    """Differences of DLG's F1 on the same texts."""
    first, second = (
        {
            (finding.seed, finding.batch): finding.scores.f1
            for finding in findings
            if (finding.arm, finding.attack, finding.round) == (arm, "DLG", "first") and finding.scores is not None
        }
        for arm in (above, below)
    )
    return [first[key] - second[key] for key in sorted(set(first) & set(second))]
