"""Runs one cell: a simulated federation from untrained to its last version, watched and scored."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aggregator.config import RunConfig
from aggregator.merge import GlobalState
from benchmarks.grid import Record
from benchmarks.hlora.arms import ARMS, Arm
from benchmarks.hlora.settings import Cell, Preset
from benchmarks.hlora.study import Study
from benchmarks.hlora.workloads import WORKLOADS
from benchmarks.scoring import Scorer
from benchmarks.simulation import Committed, SimulatedRun
from edge_client.trainers.resident_base import SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import LocalTraining
from protocol.codecs import Codec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["run_cell", "run_config"]


def run_cell(cell: Cell, preset: Preset, study: Study, base: SharedBase) -> Record:
    """Runs a cell.

    Args:
        cell: Which.
        preset: How long.
        study: Its data.
        base: The base model, which all devices and the scoring share.

    Returns:
        The cell's fields; ``curve``, a point every few rounds with the scores of what the highest rank holds, the
        traffic so far and what the merges have to say; ``ranks``, what each rank holds in the end; ``server``, the
        global update itself; ``update_bytes``, the last cohort's updates without frames; ``cpu_s``.

    Raises:
        RuntimeError: Training diverged on a device.
    """
    arm, start = ARMS[cell.arm], time.process_time()
    ranks = arm.ranks(len(study.parts))
    trainers = [
        TorchTrainer.sharing(base, rows, rank=rank, residual=arm.residual)
        for rows, rank in zip(study.parts, ranks, strict=True)
    ]
    scorer = Scorer(base, study.manifest, study.test)
    curve: list[Record] = []
    last: list[GlobalState] = []

    def observe(committed: Committed) -> None:
        if committed.version == preset.rounds:
            last.append(committed.offset)
        if committed.version % preset.score_every == 0 or committed.version == preset.rounds:
            curve.append(_point(committed, scorer, ranks))

    config = run_config(cell, arm, preset)
    with (
        tempfile.TemporaryDirectory(prefix="tributary-") as folder,
        SimulatedRun(Path(folder), config, study.manifest, trainers, seed=cell.seed) as run,
    ):
        run.until_finished(observe)
        traffic = run.traffic
        updates = run.journal.uploads(preset.rounds)
    return {
        **asdict(cell),
        "label_distance": round(study.label_distance, 4),
        "curve": curve,
        "ranks": {str(rank): scorer.score(last[0], rank) for rank in sorted(set(ranks))},
        "server": scorer.score(last[0], preset.exact_slots),
        "bytes_up": traffic.sent,
        "bytes_down": traffic.received,
        "update_bytes": sum(update.size for update in updates),
        "cpu_s": round(time.process_time() - start, 2),
    }


def run_config(cell: Cell, arm: Arm, preset: Preset) -> RunConfig:
    """The run's settings: those of all arms, and the arm's own."""
    workload, cohort = WORKLOADS[cell.task], round(cell.participation * preset.clients)
    return RunConfig(
        run="hlora",
        rounds=preset.rounds,
        cohort_size=1 if arm.pooled else cohort,
        deadline_s=None,
        default_rank=max(arm.ranks(preset.clients)),
        residual_slots=preset.exact_slots if arm.residual else None,
        handout_codec=Codec.FP32,
        update_codec=arm.codec,
        strategy=arm.strategy,
        retention=arm.retention,
        learning_rate_decay=arm.learning_rate_decay,
        local=LocalTraining(
            learning_rate=workload.learning_rate,
            epochs=1e6,
            max_steps=preset.local_steps,
            batch_size=workload.batch_size * (cohort if arm.pooled else 1),
        ),
        seed=cell.seed,
    )


def _point(committed: Committed, scorer: Scorer, ranks: Sequence[int]) -> Record:
    """One point of the curve. Norms are Frobenius norms over all modules."""
    modules = [module.svd.S for module in committed.offset.low_rank.values()]
    norm = _length(modules)
    return {
        "round": committed.version,
        **scorer.score(committed.offset, max(ranks)),
        "bytes_up": committed.traffic.sent,
        "bytes_down": committed.traffic.received,
        "norm": _rounded(norm),
        "unseen": {str(r): _rounded(_length([S[r:] for S in modules]) / norm if norm else 0.0) for r in set(ranks)},
        "step": _rounded(math.hypot(*(_number(line["update_norm"]) for line in _low_rank(committed)))),
        "merge_bias": _rounded(_merge_bias(committed)),
    }


def _merge_bias(committed: Committed) -> float:
    """``‖merged − defined‖ / ‖merged‖`` over all modules, where the rule measures it; an exact rule has none."""
    lines = list(_low_rank(committed))
    norm = math.hypot(*(_number(line["norm"]) for line in lines))
    biases = ((line["merge_bias"], _number(line["norm"])) for line in lines)
    away = math.hypot(*(_number(bias["error"]) * length for bias, length in biases if isinstance(bias, Mapping)))
    return away / norm if norm else 0.0


def _low_rank(committed: Committed) -> Iterator[Mapping[str, object]]:
    return (line for line in committed.report if line["kind"] == "low-rank")


def _length(parts: Sequence[NDArray[np.float64]]) -> float:
    return math.hypot(*(float(np.linalg.norm(part)) for part in parts))


def _number(value: object) -> float:
    assert isinstance(value, (int, float)), value
    return float(value)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
