"""One seed's data for one task: who holds which rows, what is scored, and the run's manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.command_line import BenchmarkError
from benchmarks.data.classification import ClassificationData, load_classification
from benchmarks.data.partitions import Recipe, Scheme, label_skew, partition_rows
from benchmarks.hlora.arms import RANKS
from benchmarks.hlora.settings import Cell, Preset
from benchmarks.hlora.workloads import WORKLOADS
from edge_client.errors import DataError, EdgeClientError
from edge_client.methods.lora import Lora
from edge_client.model.manifest_writer import write_manifest
from protocol.manifest import Manifest, Pooling, Task, TaskKind

__all__ = ["Study", "make_study"]

Row = Mapping[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a cell runs on."""

    manifest: Manifest
    """Classification by a linear head, held in fp32, on the mean of the base's last states."""
    parts: Sequence[Sequence[Row]]
    """Rows of each device."""
    test: Sequence[Row]
    """Rows that every arm is scored on."""
    label_distance: float
    """Mean Jensen-Shannon distance between two devices' label mixtures; 0 if there is one device."""


def make_study(cell: Cell, preset: Preset, source: str, model: str) -> Study:
    """Reads the data and deals it out.

    Args:
        cell: Which task, how uneven, and which seed.
        preset: How much data, and for how many devices.
        source: Folder or hub id of the task's data.
        model: Hub id or folder of the base model.

    Raises:
        BenchmarkError: Data or model cannot be read, or there are too few rows for the devices.
    """
    workload = WORKLOADS[cell.task]
    try:
        data = _data(source, preset.train_rows, preset.test_rows, cell.seed)
        task = Task(
            kind=TaskKind.CLASSIFICATION, max_length=workload.max_length, labels=data.labels, pooling=Pooling.MEAN
        )
        manifest = write_manifest(model, task, rank_max=max(RANKS), method=Lora(target_modules=workload.target_modules))
    except (DataError, EdgeClientError) as error:
        raise BenchmarkError(str(error)) from error
    if cell.alpha is None:
        return Study(manifest=manifest, parts=[data.train], test=data.test, label_distance=0.0)
    recipe = Recipe(
        scheme=Scheme.PRIOR_DIRICHLET,
        clients=preset.clients,
        alpha=cell.alpha,
        rows_min=workload.batch_size,
        seed=cell.seed,
    )
    try:
        partition = partition_rows(data.train, recipe)
    except ValueError as error:
        raise BenchmarkError(f"{source}: {error}") from error
    return Study(
        manifest=manifest,
        parts=[[data.train[row] for row in partition.rows_of(client)] for client in range(preset.clients)],
        test=data.test,
        label_distance=label_skew(partition, [row["label"] for row in data.train]).distance_mean,
    )


@lru_cache(maxsize=4)
def _data(source: str, train: int, test: int, seed: int) -> ClassificationData:
    """Many cells share it. As many rows as are scored are held out besides: settings were chosen on them."""
    return load_classification(source, train=train, selection=test, test=test, seed=seed)
