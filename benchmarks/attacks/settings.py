"""What the attacks run with: flags, presets, and the tuning methods that are attacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from benchmarks.command_line import UsageError
from benchmarks.data.tasks import TASKS, TextTask
from benchmarks.flags import absolute, flag_faults, refuse

if TYPE_CHECKING:
    from protocol.typed import Option

__all__ = ["ARMS", "PRESETS", "SINGLE_TEXTS", "Arm", "Preset", "Settings", "read_settings"]

SINGLE_TEXTS: Sequence[str] = ("agnews", "cola", "sst2")
"""Tasks whose rows are one text; of a pair, an attacker would have to tell the two apart besides."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to tune, as a run would do it."""

    method: str
    """Name in :data:`edge_client.methods.METHODS`."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """The method's settings."""
    rank: int = 1
    """LoRA rank, or width of the adapters."""
    learning_rate: float = 1e-3
    """AdamW's, in the rounds before the attack."""


ARMS: Mapping[str, Arm] = MappingProxyType(
    {
        "full": Arm(method="full", learning_rate=1e-4),
        "adapter": Arm(method="adapter", options={"widths": (16,)}, rank=16),
        "lora r=8": Arm(method="lora", options={"target_modules": ("query", "value")}, rank=8),
        "lora r=64": Arm(method="lora", options={"target_modules": ("query", "value")}, rank=64),
        "prefix": Arm(method="prefix", options={"length": 8}),
        "bitfit": Arm(method="bitfit"),
        "head": Arm(method="head"),
    }
)
"""By name, as tables show them."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is attacked."""

    arms: Sequence[str] = tuple(ARMS)
    """Names in :data:`ARMS`."""
    batches: Sequence[int]
    """Texts in a batch."""
    repeats: int
    """Seeds, each with rows of its own."""
    public_rows: int
    """Rows that the attacker has, and that the model is tuned on before a later round."""
    dlg_steps: int
    """Steps of the search for embeddings."""
    dlg_batch_max: int
    """Largest batch that embeddings are sought for, which takes the time; it is done in the first round alone."""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny": Preset(
            arms=("full", "lora r=8"), batches=(1,), repeats=1, public_rows=16, dlg_steps=2, dlg_batch_max=1
        ),
        "quick": Preset(batches=(1, 2), repeats=1, public_rows=64, dlg_steps=30, dlg_batch_max=1),
        "full": Preset(batches=(1, 2, 4, 8, 16), repeats=5, public_rows=256, dlg_steps=2000, dlg_batch_max=8),
    }
)
"""``tiny`` is for tests, ``quick`` takes minutes on one core, ``full`` many hours, or a GPU."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One call, checked."""

    preset_name: str
    """Name in :data:`PRESETS`."""
    seed: int
    """First seed."""
    task: str
    """Name in :data:`benchmarks.data.tasks.TASKS`."""
    data: Path | None
    """Folder with a folder per task; None: the hub."""
    model: str | None
    """Hub id or folder of a BERT; None: all-MiniLM-L6-v2."""
    out: Path | None
    """Where the result goes as JSON; None: nowhere."""
    plot: Path | None
    """Where the figure goes; None: nowhere."""

    @property
    def preset(self) -> Preset:
        """How much is done."""
        return PRESETS[self.preset_name]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the repeats."""
        return tuple(range(self.seed, self.seed + self.preset.repeats))

    @property
    def max_length(self) -> int:
        """Tokens after which a text is cut."""
        known = TASKS[self.task]
        if not isinstance(known, TextTask):
            raise UsageError(f"--task: {self.task!r} is of images")
        return known.max_length


def read_settings(
    *, preset: str, seed: str, task: str, data: str | None, model: str | None, out: str | None, plot: str | None
) -> Settings:
    """Checks flags as they were typed.

    Raises:
        UsageError: All that is wrong, in one message.
    """
    faults = flag_faults(PRESETS, preset=preset, seed=seed, files={"out": out, "plot": plot}, data=data, model=model)
    if task not in SINGLE_TEXTS:
        faults.append(f"--task: expected one of {', '.join(SINGLE_TEXTS)}, got {task!r}")
    if isinstance(data, str) and data and not Path(data).is_dir():
        faults.append(f"--data: there is no folder {data}")
    refuse(faults)
    return Settings(
        preset_name=preset,
        seed=int(seed),
        task=task,
        data=absolute(data),
        model=model,
        out=absolute(out),
        plot=absolute(plot),
    )
