"""Runs one cell of a study: deals the data out, writes the manifest, federates, and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from aggregator.config import RunConfig
from benchmarks.command_line import BenchmarkError
from benchmarks.data.classification import ClassificationData, load_classification
from benchmarks.data.images import ImageData, load_images
from benchmarks.data.partitions import Recipe, label_skew, partition_rows
from benchmarks.data.tasks import TASKS, ImageTask
from benchmarks.grid import Record, one_thread, or_failure
from benchmarks.local import fresh_adapter, train_locally
from benchmarks.scoring import Scorer
from benchmarks.studies.design import Arm, Cell, Condition, Preset, Regime
from benchmarks.studies.federated import Federated, Rows, run_federated, tuned_values
from edge_client.errors import DataError, EdgeClientError
from edge_client.methods import read_method
from edge_client.model.manifest_writer import write_manifest
from edge_client.trainers.resident_base import BaseSettings, SharedBase
from edge_client.trainers.torch_trainer import TorchTrainer
from protocol.assignment import LocalTraining
from protocol.codecs import Codec
from protocol.manifest import Manifest, Pooling, Quantization, Task, TaskKind

__all__ = ["Work", "run_config", "run_work"]

Data = ClassificationData | ImageData

_ALONE_MAX = 5
"""Devices that are trained alone: the first ones, which are as good as any."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One cell, for a process that knows nothing yet."""

    cell: Cell
    arm: Arm
    condition: Condition
    preset: Preset
    source: str
    """Folder or hub id of the task's data."""
    model: str
    """Hub id or folder of the base model."""


def run_work(work: Work) -> Record:
    """Runs a cell.

    Returns:
        The cell's fields; ``label_distance``, the mean Jensen-Shannon distance between two devices' labels; and what
        :func:`benchmarks.studies.federated.run_federated` returns, of which ``curve`` and ``best`` are missing where
        devices train alone. If training diverged, the ``failure`` instead.

    Raises:
        BenchmarkError: Data or model cannot be read, or the cell broke off.
    """
    with one_thread():
        return or_failure(work.cell, lambda: _run(work))


def _run(work: Work) -> Record:
    cell, condition = work.cell, work.condition
    rows, preset = condition.train_rows or work.preset.train_rows, work.preset
    data = _data(cell.task, work.source, rows, preset.validation_rows, preset.test_rows, cell.seed)
    manifest = _manifest(work, data)
    parts, distance = _parts(work, data)
    found = {**asdict(cell), "label_distance": round(distance, 4)}
    if condition.regime is Regime.ALONE:
        return {**found, **_alone(work, manifest, parts, data.test)}
    base = _base(work.model, work.arm.method)
    given = Federated(
        manifest=manifest,
        config=run_config(work),
        base=base,
        parts=parts,
        ranks=[work.arm.rank] * len(parts),
        validation=data.selection,
        test=data.test,
        metric=TASKS[cell.task].metric,
        score_every=work.preset.score_every,
        devices=None if condition.fleet is None else condition.fleet.draw(len(parts), cell.seed),
    )
    return {**found, **run_federated(given)}


def _alone(work: Work, manifest: Manifest, parts: Sequence[Rows], test: Rows) -> Record:
    """What devices come to by themselves: the mean of their test scores."""
    base, rank = _base(work.model, work.arm.method), work.arm.rank
    scorer, scores = Scorer(base, manifest, test), []
    for rows in parts[:_ALONE_MAX]:
        trainer = TorchTrainer.sharing(base, rows, rank=rank)
        trainer.info(manifest)
        rounds = max(1, round(work.preset.rounds * work.condition.participation))
        start = fresh_adapter(manifest, rank, work.cell.seed)
        trained = train_locally(trainer, start, rounds=rounds, local=_local(work), seed=work.cell.seed)
        scores.append(scorer.score_adapter(trained, rank))
    test_scores = {name: sum(each[name] for each in scores) / len(scores) for name in scores[0]}
    return {"last": {"test": test_scores}, "tuned": tuned_values(manifest, rank)}


def run_config(work: Work) -> RunConfig:
    """How the rounds of a cell go."""
    pooled = work.condition.regime is Regime.CENTRALISED
    return RunConfig(
        run="study",
        rounds=work.preset.rounds,
        cohort_size=1 if pooled else work.condition.cohort,
        default_rank=work.arm.rank,
        handout_codec=Codec.FP32,
        update_codec=Codec.FP32,
        local=_local(work),
        seed=work.cell.seed,
        **{"deadline_s": None, **work.condition.server, **work.arm.server},
    )


def _local(work: Work) -> LocalTraining:
    """Pooled data passes at the pace of a cohort: its share of all rows a round."""
    share = work.condition.participation if work.condition.regime is Regime.CENTRALISED else 1.0
    return LocalTraining(
        learning_rate=work.cell.learning_rate,
        epochs=work.condition.epochs * share,
        batch_size=work.preset.batch_size,
        **work.condition.local,
    )


def _parts(work: Work, data: Data) -> tuple[Sequence[Rows], float]:
    """Rows of each device, and how far their labels are apart."""
    condition = work.condition
    if condition.regime is Regime.CENTRALISED:
        return [data.train], 0.0
    recipe = Recipe(scheme=condition.scheme, clients=condition.clients, alpha=condition.alpha, seed=work.cell.seed)
    try:
        partition = partition_rows(data.train, recipe)
    except ValueError as error:
        raise BenchmarkError(f"{work.source}: {error}") from error
    skew = label_skew(partition, [row["label"] for row in data.train])
    parts = [[data.train[row] for row in partition.rows_of(client)] for client in range(condition.clients)]
    return parts, skew.distance_mean


def _manifest(work: Work, data: Data) -> Manifest:
    known = TASKS[work.cell.task]
    if isinstance(known, ImageTask):
        task = Task(kind=TaskKind.IMAGE_CLASSIFICATION, labels=data.labels, pooling=Pooling.MEAN)
    else:
        task = Task(kind=TaskKind.CLASSIFICATION, max_length=known.max_length, labels=data.labels, pooling=Pooling.MEAN)
    try:
        method = read_method(work.arm.method, work.arm.options)
        return write_manifest(work.model, task, method=method, rank_max=work.arm.rank)
    except EdgeClientError as error:
        raise BenchmarkError(f"{work.cell.arm}: {error}") from error


@lru_cache(maxsize=4)
def _data(task: str, source: str, train: int | None, validation: int, test: int | None, seed: int) -> Data:
    """Many cells share it."""
    known = TASKS[task]
    try:
        if isinstance(known, ImageTask):
            return load_images(source, classes=known.classes, train=train, selection=validation, test=test, seed=seed)
        return load_classification(source, train=train, selection=validation, test=test, seed=seed)
    except DataError as error:
        raise BenchmarkError(str(error)) from error


@lru_cache(maxsize=1)
def _base(model: str, method: str) -> SharedBase:
    """One base for all cells of a process that tune alike."""
    del method  # one that trains the base itself leaves it changed for others
    return SharedBase(BaseSettings(model=model, quantization=Quantization.FP32, compute_dtype="fp32"))
