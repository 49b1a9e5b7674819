"""Turns findings into what the terminal shows and what the result file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.faults.audit import Findings, Resume, Trainings
from benchmarks.faults.evidence import AGGREGATOR, DEVICES
from benchmarks.faults.phases import Doing
from benchmarks.table import format_bytes, format_table

__all__ = ["measurements", "print_findings", "rows"]


def measurements(findings: Sequence[Findings]) -> dict[str, float]:
    """What ``targets.toml`` sets goals for."""
    return {
        "aggregator_kills": sum(each.kills[AGGREGATOR] for each in findings),
        "device_kills": sum(each.kills[DEVICES] for each in findings),
        "acknowledged_lost": sum(each.lost for each in findings),
        "counted_twice": sum(each.twice for each in findings),
        "needless_trainings": sum(each.trainings.needless for each in findings),
        "versions_unequal": sum(each.versions_unequal for each in findings),
        "resent_over_limit": sum(each.resent_over_limit for each in findings),
    }


def rows(findings: Sequence[Findings]) -> Iterator[dict[str, object]]:
    """Everything measured, one flat mapping each, for the result file."""
    for each in findings:
        yield {
            "kind": "run",
            "seed": each.seed,
            "seconds": each.seconds,
            "aggregator_kills": each.kills[AGGREGATOR],
            "aggregator_kills_starting": each.kills_starting[AGGREGATOR],
            "device_kills": each.kills[DEVICES],
            "device_kills_starting": each.kills_starting[DEVICES],
            "links_cut": each.cuts,
            "versions": each.versions,
            "versions_unequal": each.versions_unequal,
            "acknowledged": each.acknowledged,
            "acknowledged_lost": each.lost,
            "counted_twice": each.twice,
            "trainings": each.trainings.begun,
            "trainings_interrupted": each.trainings.interrupted,
            "trainings_needless": each.trainings.needless,
            "bytes_up": each.bytes_up,
            "bytes_useful": each.bytes_useful,
        }
        for side, counts in each.landed.items():
            for what, count in counts.items():
                yield {"kind": "kills", "seed": each.seed, "side": side, "while": what, "count": count}
    for name, group in _resumes(findings).items():
        yield {
            "kind": "resume",
            "after": name,
            "count": len(group),
            **_spread([each.resent for each in group], "bytes"),
        }
    for name, seconds in _times(findings).items():
        yield {"kind": "time", "what": name, "count": len(seconds), **_spread(seconds, "s")}


def print_findings(findings: Sequence[Findings]) -> None:
    """Prints the tables."""
    print(_kills(findings))
    print()
    print(_breaks(findings))
    print()
    print(_recoveries(findings))
    print()
    trained = sum((each.trainings for each in findings), Trainings())
    useful, up = sum(each.bytes_useful for each in findings), sum(each.bytes_up for each in findings)
    print(
        f"{sum(each.versions for each in findings)} versions merged from "
        f"{sum(each.acknowledged for each in findings)} acknowledged updates; {trained.begun} trainings begun, "
        f"{trained.interrupted} of them again after a kill in the middle\n"
        f"{sum(each.cuts for each in findings)} links cut; {format_bytes(up)} sent by devices for "
        f"{format_bytes(useful)} of acknowledged updates"
    )


def _kills(findings: Sequence[Findings]) -> str:
    lines = [
        [str(what), *(str(sum(each.landed[side].get(what, 0) for each in findings)) for side in (AGGREGATOR, DEVICES))]
        for what in Doing
    ]
    total = ["all", *(str(sum(map(int, column))) for column in list(zip(*lines, strict=True))[1:])]
    return format_table(["killed while", "the aggregator", "a device"], [*lines, total])


def _breaks(findings: Sequence[Findings]) -> str:
    header = ["upload resumed after", "times", "re-sent: median", "max", "limit"]
    lines = [
        [
            name,
            str(len(group)),
            format_bytes(int(np.median([each.resent for each in group]))),
            format_bytes(max(each.resent for each in group)),
            format_bytes(max(each.limit for each in group)),
        ]
        for name, group in _resumes(findings).items()
        if group
    ]
    return format_table(header, lines)


def _recoveries(findings: Sequence[Findings]) -> str:
    lines = [
        [name, str(len(seconds)), *(f"{value:.2f} s" for value in _spread(seconds, "s").values())]
        for name, seconds in _times(findings).items()
        if seconds
    ]
    return format_table(["the aggregator", "times", "median", "p95", "max"], lines)


def _resumes(findings: Sequence[Findings]) -> dict[str, list[Resume]]:
    found = [each for one in findings for each in one.resumes]
    return {
        "the aggregator's death": [each for each in found if each.aggregator_died and not each.was_checked],
        "a device's death, or a cut": [each for each in found if not each.aggregator_died],
        "the aggregator's death between sealing and journal": [each for each in found if each.was_checked],
    }


def _times(findings: Sequence[Findings]) -> dict[str, list[float]]:
    return {
        "from start to readiness": [value for each in findings for value in each.recoveries_s],
        "from its death to a device's greeting": [value for each in findings for value in each.back_at_work_s],
    }


def _spread(values: Sequence[float], unit: str) -> dict[str, float]:
    if not values:
        return {}
    median, p95 = np.percentile(values, [50, 95])
    return {f"median_{unit}": float(median), f"p95_{unit}": float(p95), f"max_{unit}": float(max(values))}
