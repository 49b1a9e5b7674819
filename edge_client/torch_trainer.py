"""The trainer that a device really uses: a transformers base, held quantised, tuned through PEFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.trainer import LocalResult, Progress, TrainerInfo
from protocol.assignment import Assignment
from protocol.manifest import Manifest, Quantization
from protocol.payload import AdapterTensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TorchTrainer"]


class TorchTrainer:
    """Implements :class:`edge_client.trainer.Trainer` with torch, transformers, PEFT and bitsandbytes.

    Args:
        model: Hub id or folder of the base model.
        data: Training data: a ``datasets.Dataset``, a list of dicts, a torch ``Dataset`` of dicts, a JSONL or CSV
            file, or a folder with ``train.jsonl`` (and ``validation.jsonl``). None: this trainer only evaluates.
        eval_data: The same for evaluation; None: the folder's ``validation.jsonl`` if ``data`` is one, else ``data``.
        quantization: How to hold the base: ``nf4``, ``int8``, ``bf16`` or ``fp32``.
        rank: LoRA rank to ask for; None: the run's default.
        lora_alpha: PEFT's ``lora_alpha``; None: whatever makes the scaling ``s`` 2.
        use_rslora: ``s = α/√r`` instead of ``α/r``.
        residual: Whether to take the part of the global update beyond ``rank`` as a frozen adapter.
        micro_batch_size: Examples per forward pass; None: the whole batch. A contrastive loss needs the whole batch.
        device: torch device; None: ``cuda`` where there is one, else ``cpu``.
        compute_dtype: ``"fp32"``, ``"bf16"`` or ``"auto"``: bf16 on CUDA devices that have it, fp32 on a CPU.
    """

    def __init__(
        self,
        model: str | Path,
        data: object = None,
        *,
        eval_data: object = None,
        quantization: Quantization | str = Quantization.NF4,
        rank: int | None = None,
        lora_alpha: float | None = None,
        use_rslora: bool = False,
        residual: bool = False,
        micro_batch_size: int | None = None,
        device: str | None = None,
        compute_dtype: str = "auto",
    ) -> None:
        raise NotImplementedError

    @property
    def model(self) -> object:
        """The resident ``peft.PeftModel`` with the adapter last loaded."""
        raise NotImplementedError

    def info(self, manifest: Manifest) -> TrainerInfo:
        """Loads base and data on first use, checks them against the manifest and says what this device is."""
        raise NotImplementedError

    def run(
        self,
        assignment: Assignment,
        handout: AdapterTensors,
        *,
        cancelled: Callable[[], bool],
        progress: Callable[[Progress], None],
    ) -> LocalResult:
        """Carries out one assignment."""
        raise NotImplementedError

    def install(self, adapter: AdapterTensors, rank: int) -> None:
        """Puts an adapter into the resident model for use; call :meth:`info` first."""
        raise NotImplementedError

    def embed(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """Unit vectors ``[len(texts), d]`` of an embedding run's model, with the adapter last loaded or installed."""
        raise NotImplementedError
