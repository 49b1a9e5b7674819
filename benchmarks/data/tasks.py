"""The classification tasks that benchmarks know: where their rows are, and what they are scored by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = ["PRETRAINING", "TASKS", "ImageTask", "TextTask", "source_of"]


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """One task."""

    hub: str
    """Hub id of the data, for those who name no folder."""
    metric: str
    """What the task is scored by, as GLUE does."""
    max_length: int
    """Tokens of a text, or of a pair, after which it is cut."""


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Some classes of a set of images."""

    hub: str
    """As of :class:`TextTask`."""
    metric: str
    """As of :class:`TextTask`."""
    classes: tuple[str, ...]
    """Which."""


_CIFAR10 = "uoft-cs/cifar10"
PRETRAINING = ImageTask(hub=_CIFAR10, metric="accuracy", classes=("airplane", "automobile", "bird", "cat", "deer"))
"""The half of CIFAR-10's classes that a small vision transformer is pretrained on, to be tuned for the others."""
TASKS: Mapping[str, TextTask | ImageTask] = MappingProxyType(
    {
        "agnews": TextTask(hub="fancyzhx/ag_news", metric="accuracy", max_length=48),
        "cola": TextTask(hub="nyu-mll/glue:cola", metric="matthews", max_length=32),
        "mrpc": TextTask(hub="nyu-mll/glue:mrpc", metric="f1", max_length=64),
        "qnli": TextTask(hub="nyu-mll/glue:qnli", metric="accuracy", max_length=64),
        "qqp": TextTask(hub="nyu-mll/glue:qqp", metric="accuracy", max_length=48),
        "cifar10": ImageTask(
            hub=_CIFAR10,
            metric="accuracy",
            classes=("dog", "frog", "horse", "ship", "truck"),
        ),
        "rte": TextTask(hub="nyu-mll/glue:rte", metric="accuracy", max_length=64),
        "sst2": TextTask(hub="stanfordnlp/sst2", metric="accuracy", max_length=32),
    }
)
"""By name, which is that of the data's folder, too."""


def source_of(task: str, data: Path | None) -> str:
    """Folder or hub id of a task's data.

    Args:
        task: Name in :data:`TASKS`.
        data: Folder with a folder per task; None: the hub.
    """
    return TASKS[task].hub if data is None else str(data / task)
