"""Turns outcomes into what the terminal shows and what the result file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from benchmarks.bootstrap import Comparison, compare_paired
from benchmarks.quickstart.evaluation import Score
from benchmarks.quickstart.outcome import DeviceOutcome, SeedOutcome
from benchmarks.quickstart.versions import LayerError
from benchmarks.table import format_bytes, format_table

__all__ = ["comparisons", "measurements", "print_outcomes", "rows"]

_ALONE = " alone"


def comparisons(outcomes: Sequence[SeedOutcome]) -> dict[str, Comparison]:
    """The global adapter against each rival, query by query; a query's scores are averaged over the seeds first.

    Empty where the task has no scores by query.
    """
    if not outcomes[0].federated.by_query.size:
        return {}
    ours = np.mean([outcome.federated.by_query for outcome in outcomes], axis=0)
    return {
        name: compare_paired(ours, np.mean([outcome.rivals[name].by_query for outcome in outcomes], axis=0))
        for name in outcomes[0].rivals
    }


def measurements(outcomes: Sequence[SeedOutcome], seconds: float) -> dict[str, float]:
    """What ``targets.toml`` sets goals for; nothing where the task is not code search.

    Args:
        outcomes: One a seed.
        seconds: How long it took; the goal is that of a single seed, several have none.
    """
    found = comparisons(outcomes)
    if not found:
        return {}
    return {
        **({"seconds": seconds} if len(outcomes) == 1 else {}),
        "p_over_zero_shot": found["zero-shot"].p,
        "p_over_tfidf": found["TF-IDF"].p,
        "p_over_alone": max(comparison.p for name, comparison in found.items() if name.endswith(_ALONE)),
    }


def rows(outcomes: Sequence[SeedOutcome]) -> Iterator[dict[str, object]]:
    """Everything measured, one flat mapping each, for the result file."""
    for outcome in outcomes:
        yield {"kind": "time", "seed": outcome.seed, **outcome.seconds}
        for name, score in _scores(outcome):
            yield {"kind": "score", "seed": outcome.seed, "model": name, **score.metrics}
        for device in outcome.devices:
            yield {"kind": "device", "seed": outcome.seed, "name": device.name, **asdict(device.device)} | {
                "num_examples": device.num_examples,
                "bytes_down": device.received,
                "bytes_up": device.sent,
            }
        for layer in outcome.layers:
            yield {"kind": "layer", "seed": outcome.seed, **asdict(layer)}
    for name, comparison in comparisons(outcomes).items():
        yield {"kind": "comparison", "federated_against": name, **asdict(comparison)}


def print_outcomes(outcomes: Sequence[SeedOutcome], metric: str) -> None:
    """Prints the tables."""
    print(_devices(outcomes[-1].devices))
    print()
    print(_layers(outcomes[-1].layers))
    print()
    print(_models(outcomes, metric))


def _scores(outcome: SeedOutcome) -> Iterator[tuple[str, Score]]:
    yield from outcome.untrained.items()
    for device in outcome.devices:
        yield f"{device.name}{_ALONE}, rank {device.device.rank}", device.alone
    for number, score in outcome.rounds.items():
        yield f"federated, round {number}", score
    for device in outcome.devices:
        yield f"federated, as {device.name} holds it, rank {device.device.rank}", device.own_rank
    yield "pooled data, rank 16", outcome.pooled


def _models(outcomes: Sequence[SeedOutcome], metric: str) -> str:
    found = comparisons(outcomes)
    metrics = list(outcomes[0].federated.metrics)
    header = ["", *metrics, *(["federated is ahead by (95 % interval), p"] if found else [])]
    header = [name.upper() if name == metric else name for name in header]
    lines = []
    for index, (name, _) in enumerate(_scores(outcomes[0])):
        alike = [list(_scores(outcome))[index][1] for outcome in outcomes]
        comparison = found.get(name.split(", rank")[0])
        lines.append([name, *(_mean(alike, key) for key in metrics)] + [_ahead(comparison)] * bool(found))
    return format_table(header, lines)


def _mean(scores: Sequence[Score], key: str) -> str:
    values = [score.metrics[key] for score in scores if key in score.metrics]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _ahead(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    return f"{comparison.difference:+.3f} ({comparison.low:+.3f} to {comparison.high:+.3f}), p = {comparison.p:.4f}"


def _devices(devices: Sequence[DeviceOutcome]) -> str:
    header = ["device", "rank", "α", "scaling", "examples", "down", "up"]
    lines = [
        [
            each.name,
            str(each.device.rank),
            f"{each.device.lora_alpha:g}",
            "α/√r" if each.device.use_rslora else "α/r",
            str(each.num_examples),
            format_bytes(each.received),
            format_bytes(each.sent),
        ]
        for each in devices
    ]
    return format_table(header, lines)


def _layers(layers: Sequence[LayerError]) -> str:
    """One line a layer: what the merge lost, and what the rank-r hand-out leaves out of it."""
    if not layers:
        return "no low-rank layers"
    ranks = sorted(layers[0].handout)
    header = ["relative error of", "merge", *(f"hand-out r={rank}" for rank in ranks)]
    lines = [
        [_short(layer.module), f"{layer.merge:.0e}", *(_percent(layer, rank) for rank in ranks)] for layer in layers
    ]
    return format_table(header, lines)


def _percent(layer: LayerError, rank: int) -> str:
    return f"{100 * layer.handout[rank]:.1f} %" if rank in layer.handout else ""


def _short(module: str) -> str:
    return (
        module.replace("encoder.layer.", "layer ")
        .replace("attention.self.", "")
        .replace("attention.output", "attention-output")
    )
