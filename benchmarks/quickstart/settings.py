"""What the quick start runs with: its flags, its presets, and the four devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.flags import absolute, flag_faults, folder_fault, refuse
from protocol.manifest import Quantization

__all__ = ["DEVICES", "PRESETS", "Device", "Preset", "Settings", "read_settings"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What one device can afford, and how it chose to scale its adapter."""

    rank: int
    """LoRA rank."""
    lora_alpha: float
    """PEFT's ``lora_alpha``."""
    use_rslora: bool = False
    """Scaling ``α/√r`` instead of ``α/r``."""


DEVICES: Sequence[Device] = (
    Device(rank=2, lora_alpha=8),
    Device(rank=4, lora_alpha=12),
    Device(rank=8, lora_alpha=20),
    Device(rank=16, lora_alpha=8, use_rslora=True),
)
"""Four devices of different strength and habit: scalings 4, 3, 2.5 and (rank-stabilised) 2. A lower rank takes larger
steps along each of its fewer directions."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is done."""

    seeds: int
    """Repetitions with other training draws and data orders; the held-out part stays."""
    rounds: int
    """Federated rounds; a device alone and the pooled data are given the same number of local ones."""
    train_per_device: int | None
    """Most training examples of a device; None: all."""
    held_out_per_device: int | None
    """Most held-out examples of each device; None: all."""
    per_file: int | None
    """Most functions taken of one file of a code base; None: all."""
    score_every: int = 1
    """Rounds from one scored round to the next."""


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "quick": Preset(seeds=1, rounds=4, train_per_device=400, held_out_per_device=200, per_file=4, score_every=2),
        "full": Preset(seeds=3, rounds=4, train_per_device=640, held_out_per_device=200, per_file=5),
        "paper": Preset(seeds=3, rounds=8, train_per_device=None, held_out_per_device=None, per_file=None),
    }
)
"""``quick`` is the demo, under five minutes on two cores; ``full`` gives deviations; ``paper`` uses all there is."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One call of the quick start, checked."""

    preset_name: str
    """Name in :data:`PRESETS`."""
    seed: int
    """First seed."""
    out: Path | None
    """Where the result goes as JSON; None: nowhere."""
    query: str | None
    """What to search for in the end; None: asked for, if there is a terminal."""
    data: str | None
    """Folder or hub data set of a classification task to federate instead; None: code search."""
    model: str | None
    """Hub id or folder of the base model; None: all-MiniLM-L6-v2 from its package."""
    quantization: Quantization
    """How all devices hold the base."""
    home: Path | None
    """Where the aggregator's home, the tickets and the data are kept; None: a temporary folder, deleted in the end."""

    @property
    def preset(self) -> Preset:
        """How much is done."""
        return PRESETS[self.preset_name]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the repetitions."""
        return tuple(range(self.seed, self.seed + self.preset.seeds))


def read_settings(
    *,
    preset: str,
    seed: str,
    quantization: str,
    out: str | None,
    query: str | None,
    data: str | None,
    model: str | None,
    home: str | None,
) -> Settings:
    """Checks flags as they were typed.

    Raises:
        UsageError: All that is wrong, in one message.
    """
    faults = flag_faults(
        PRESETS, preset=preset, seed=seed, files={"out": out}, query=query, data=data, model=model, home=home
    )
    if quantization not in list(Quantization):
        faults.append(f"--quantization: expected one of {', '.join(Quantization)}, got {quantization!r}")
    faults += folder_fault("home", home)
    refuse(faults)
    return Settings(
        preset_name=preset,
        seed=int(seed),
        out=absolute(out),
        query=query,
        data=data,
        model=model,
        quantization=Quantization(quantization),
        home=absolute(home),
    )
