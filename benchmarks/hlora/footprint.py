"""What a device pays for its rank: memory and time of a training step, each rank in a process that did nothing else."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from aggregator.merge import GlobalState, make_handout
from benchmarks.hlora.arms import RANKS
from benchmarks.hlora.workloads import Workload
from benchmarks.local import local_assignment
from benchmarks.table import format_bytes, format_table
from protocol.assignment import AssignmentKind, LocalTraining
from protocol.codecs import Codec
from protocol.manifest import Pooling, Quantization, Task, TaskKind
from protocol.payload import Layout

__all__ = ["Footprint", "footprint_table", "measure_footprints"]

_WARM_UP = 3
"""Steps whose time is not counted: allocators and caches are cold."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """One rank's training."""

    rank: int
    """LoRA rank."""
    step_s: float
    """Median processor seconds of an optimizer step, one thread."""
    peak_bytes: int
    """Largest resident size of the process: Python, torch, base, activations and all."""
    grown_bytes: int
    """How much of it came with training: adapter, gradients, moments, activations."""
    update_bytes: int
    """The update as it travels, in fp32."""


def measure_footprints(model: str, workload: Workload, *, steps: int, repeats: int = 3) -> list[Footprint]:
    """Measures every rank, the ranks taking turns, and gives each one's process of median step time.

    Args:
        model: Hub id or folder of the base model.
        workload: Says how many examples a step has, and of how many tokens: here all are as long as they may be.
        steps: Optimizer steps to time.
        repeats: Processes per rank.
    """
    context = multiprocessing.get_context("spawn")
    found: dict[int, list[Footprint]] = {rank: [] for rank in RANKS}
    for _ in range(repeats):
        for rank in RANKS:
            with ProcessPoolExecutor(1, mp_context=context) as fresh:
                found[rank].append(fresh.submit(_measure, model, workload, rank, steps).result())
    return [sorted(each, key=lambda footprint: footprint.step_s)[len(each) // 2] for each in found.values()]


def footprint_table(footprints: Sequence[Footprint]) -> str:
    """A line a rank."""
    header = ["a step of training", "time", "memory in all", "of which training", "update, fp32"]
    lines = [
        [
            f"rank {each.rank}",
            f"{1e3 * each.step_s:.1f} ms",
            format_bytes(each.peak_bytes),
            format_bytes(each.grown_bytes),
            format_bytes(each.update_bytes),
        ]
        for each in footprints
    ]
    return format_table(header, lines)


def _measure(model: str, workload: Workload, rank: int, steps: int) -> Footprint:
    import torch

    from edge_client.methods.lora import Lora
    from edge_client.model.manifest_writer import write_manifest
    from edge_client.trainers.torch_trainer import TorchTrainer

    torch.set_num_threads(1)
    task = Task(
        kind=TaskKind.CLASSIFICATION, max_length=workload.max_length, labels=("no", "yes"), pooling=Pooling.MEAN
    )
    manifest = write_manifest(model, task, rank_max=max(RANKS), method=Lora(target_modules=workload.target_modules))
    text = " ".join(["word"] * workload.max_length)  # at least as many tokens, and cut
    rows = [{"sentence": text, "label": index % 2} for index in range(workload.batch_size)]
    trainer = TorchTrainer(model, rows, quantization=Quantization.FP32, compute_dtype="fp32", rank=rank, device="cpu")
    trainer.info(manifest)
    adapter = make_handout(GlobalState.zeros(manifest), manifest, rank, seed=0)
    local = LocalTraining(max_steps=steps + _WARM_UP, epochs=1e6, batch_size=workload.batch_size)
    before, times = _peak_bytes(), [time.process_time()]
    trainer.run(
        local_assignment(AssignmentKind.TRAIN, rank=rank, local=local),
        adapter,
        cancelled=lambda: False,
        progress=lambda progress: times.append(time.process_time()),
    )
    took = [after - at for at, after in pairwise(times)]
    return Footprint(
        rank=rank,
        step_s=statistics.median(took[_WARM_UP:]),
        peak_bytes=_peak_bytes(),
        grown_bytes=_peak_bytes() - before,
        update_bytes=len(Layout.of(manifest).encode(adapter, Codec.FP32)),
    )


def _peak_bytes() -> int:
    """Largest resident size so far; Linux counts it in KiB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
