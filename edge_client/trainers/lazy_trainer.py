"""The built-in trainer, made on first use: torch takes seconds to import, and the link should be up by then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from edge_client.config import LocalModel
from edge_client.errors import ConfigError
from edge_client.trainer import LocalResult, Progress, Trainer, TrainerInfo
from protocol.assignment import Assignment
from protocol.manifest import Manifest
from protocol.payload import AdapterTensors

__all__ = ["LazyTrainer", "torch_trainer"]


def torch_trainer(local: LocalModel) -> Trainer:
    """Makes the built-in trainer; imports torch, and says how to install it where it is missing."""
    try:
        from edge_client.trainers.torch_trainer import TorchTrainer
    except ImportError as error:
        raise ConfigError(
            f"training needs torch and its companions ({error}): pip install 'tributary-fl[client]'"
        ) from error
    return TorchTrainer(**{field.name: getattr(local, field.name) for field in fields(local)})


class LazyTrainer:
    """Any trainer, made when it is first needed.

    Args:
        make: Makes it; called once, in the thread that trains.
    """

    def __init__(self, make: Callable[[], Trainer]) -> None:
        self._make = make
        self._made: Trainer | None = None

    @property
    def made(self) -> Trainer | None:
        """The trainer itself, once it is made."""
        return self._made

    def info(self, manifest: Manifest) -> TrainerInfo:
        """As the trainer."""
        return self._trainer().info(manifest)

    def run(
        self,
        assignment: Assignment,
        handout: AdapterTensors,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> LocalResult:
        """As the trainer."""
        return self._trainer().run(assignment, handout, cancelled=cancelled, progress=progress)

    def install(self, adapter: AdapterTensors, rank: int) -> None:
        """As the trainer."""
        self._trainer().install(adapter, rank)

    def _trainer(self) -> Trainer:
        if self._made is None:
            self._made = self._make()
        return self._made
