"""What is federated: who owns which rows, what is held out, and what does without any training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.command_line import BenchmarkError
from benchmarks.data.classification import ClassificationData, load_classification
from benchmarks.data.code_search import CodeSearch, load_code_search
from benchmarks.data.functions import Function, PackageNotFoundError
from benchmarks.data.partitions import Recipe, Scheme, partition_rows
from benchmarks.data.words import without_punctuation
from benchmarks.quickstart.evaluation import Score, score_search
from benchmarks.quickstart.settings import DEVICES, Preset
from benchmarks.tfidf import tfidf_scores
from edge_client.errors import DataError
from protocol.assignment import LocalTraining
from protocol.manifest import Pooling, Task, TaskKind

__all__ = ["Study", "code_search_study", "labelled_study"]

Row = Mapping[str, object]

_SEARCH_TRAINING = LocalTraining(learning_rate=1e-3, epochs=0.25, batch_size=16)
"""Chosen, as the server's step, on parts of the training files, never on held-out queries. A quarter of the data a
round: new examples in each of four rounds teach more than the same ones again."""
_SEARCH_SERVER_STEP = 2.0
"""On the mean of four updates: what code bases agree on may move further than the mean of what each wants."""
_SEARCH_MODULES = tuple(
    f"encoder.layer.{layer}.{linear}"
    for layer in range(2, 6)
    for linear in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
)
"""The upper four of all-MiniLM-L6-v2's six layers: as good in tries as all six, a third cheaper to train."""
_LABEL_TRAINING = LocalTraining(learning_rate=1e-3, epochs=1.0, batch_size=16)
_MAX_LENGTH = 80
"""Tokens of a code-search text: half of the functions fit, of the others the beginning does."""
_CONCENTRATION = 1.0
"""Label mixtures that differ visibly between devices, none of them degenerate."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """One seed's data."""

    task: Task
    """The run's task."""
    local: LocalTraining
    """How a device trains in a round."""
    server_learning_rate: float = 1.0
    """The aggregator's step on the mean update."""
    target_modules: tuple[str, ...] | None = None
    """Linear layers to tune if the base is all-MiniLM-L6-v2; None, and of any other base: all."""
    train: Mapping[str, Sequence[Row]]
    """Rows by device name, one device for each of :data:`~benchmarks.quickstart.settings.DEVICES`."""
    held_out: Sequence[Row]
    """Rows that all models are scored on."""
    untrained: Mapping[str, Score]
    """What scores how without training or model, by name."""
    functions: Sequence[Function] = ()
    """The held-out functions, if the study is code search."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where the data comes from, with versions."""


def code_search_study(preset: Preset, seed: int) -> Study:
    """Each device owns the functions of one installed package.

    Raises:
        BenchmarkError: A package is missing.
    """
    try:
        data = load_code_search(
            train_per_package=preset.train_per_device,
            held_out_per_package=preset.held_out_per_device,
            per_file=preset.per_file,
            seed=seed,
        )
    except PackageNotFoundError as error:
        raise BenchmarkError(str(error)) from error
    return Study(
        task=Task(kind=TaskKind.EMBEDDING, max_length=_MAX_LENGTH, pooling=Pooling.MEAN),
        local=_SEARCH_TRAINING,
        server_learning_rate=_SEARCH_SERVER_STEP,
        target_modules=_SEARCH_MODULES,
        train={package: [_pair(function) for function in functions] for package, functions in data.train.items()},
        held_out=[_pair(function) for function in data.held_out],
        untrained=_tfidf(data),
        functions=data.held_out,
        sources=data.versions,
    )


def labelled_study(data: str, preset: Preset, seed: int) -> Study:
    """Deals a classification data set out to the devices, each with its own mixture of labels.

    Args:
        data: Folder or hub data set, see :func:`~benchmarks.data.classification.load_classification`.
        preset: How much of it to take.
        seed: Draws the examples and the mixtures.

    Raises:
        BenchmarkError: It cannot be read, or is no classification task of at least one row a device.
    """
    recipe = Recipe(scheme=Scheme.CLASS_DIRICHLET, clients=len(DEVICES), alpha=_CONCENTRATION, seed=seed)
    most_training, most_held_out = _of_all(preset.train_per_device), _of_all(preset.held_out_per_device)
    try:
        found = load_classification(data, train=most_training, selection=0, test=most_held_out, seed=seed)
        partition = partition_rows(found.train, recipe)
    except (DataError, ValueError) as error:
        raise BenchmarkError(f"--data {data}: {error}") from error
    return Study(
        task=Task(kind=TaskKind.CLASSIFICATION, max_length=128, labels=found.labels, pooling=Pooling.MEAN),
        local=_LABEL_TRAINING,
        train={
            f"device-{client + 1}": [found.train[row] for row in partition.rows_of(client)]
            for client in range(partition.clients)
        },
        held_out=found.test,
        untrained={"majority label": Score(metrics={"accuracy": _majority_share(found)}, by_query=np.zeros(0))},
        sources={data: f"{len(found.train)} training, {len(found.test)} {found.test_split} rows"},
    )


def _of_all(per_device: int | None) -> int | None:
    return None if per_device is None else per_device * len(DEVICES)


def _majority_share(found: ClassificationData) -> float:
    """How many held-out rows have the label that most training rows have."""
    majority, _ = Counter(row["label"] for row in found.train).most_common(1)[0]
    return float(np.mean([row["label"] == majority for row in found.test]))


def _pair(function: Function) -> Row:
    return {"query": function.query, "target": without_punctuation(function.code)}


def _tfidf(data: CodeSearch) -> dict[str, Score]:
    queries, pool = [f.query for f in data.held_out], [f.code for f in data.held_out]
    return {
        "TF-IDF": score_search(tfidf_scores(queries, pool)),
        "TF-IDF, sublinear": score_search(tfidf_scores(queries, pool, sublinear=True)),
    }
