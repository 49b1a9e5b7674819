"""``federate(trainer)``: a Hugging Face trainer that the user already has takes part in a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_client.client import EdgeClient
from edge_client.errors import ConfigError
from edge_client.status import RoundResult, RunSummary
from edge_client.trainer import Progress
from protocol.ticket import Ticket

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import transformers

__all__ = ["federate"]


def federate(
    trainer: transformers.Trainer,
    ticket: str | os.PathLike[str] | Ticket,
    *,
    base: str | Path | None = None,
    rank: int | None = None,
    residual: bool = False,
    state_dir: str | os.PathLike[str] | None = None,
    key: str | os.PathLike[str] | None = None,
    name: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_round: Callable[[RoundResult], None] | None = None,
    progress_bar: bool = False,
) -> RunSummary:
    """Takes part in a run with a ``transformers.Trainer`` or TRL ``SFTTrainer``; blocks until the run is over.

    Model, data, collator and loss stay the trainer's; steps, learning rate and seed come from the run. Afterwards
    ``trainer.model`` holds the final adapter.

    Args:
        trainer: The trainer, its model plain or a ``PeftModel`` with LoRA.
        ticket: The operator's ticket, or the path of its file.
        base: Hub id or folder that the model was loaded from; None: what its config says.
        rank: LoRA rank of this device; None: the ``PeftModel``'s, or the run's default.
        residual: Whether to take the part of the global adapter above ``rank`` as a frozen adapter.
        state_dir: As in :class:`~edge_client.client.EdgeClient`.
        key: As there.
        name: As there.
        on_progress: As there.
        on_round: As there.
        progress_bar: As there.

    Returns:
        What came of it.

    Raises:
        EdgeClientError: This device cannot take part (see :mod:`edge_client.errors`).
    """
    try:
        from edge_client.trainers.hf_trainer import HFTrainerAdapter
    except ImportError as error:
        raise ConfigError(
            f"federate() needs torch and its companions ({error}): pip install 'tributary-fl[client]'"
        ) from error
    client = EdgeClient(
        ticket,
        trainer=HFTrainerAdapter(trainer, base=base, rank=rank, residual=residual),
        state_dir=state_dir,
        key=key,
        name=name,
        on_progress=on_progress,
        on_round=on_round,
        progress_bar=progress_bar,
    )
    return client.run()
