"""A version of a run as a folder, PEFT's own or the general one, whether the daemon runs or not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from aggregator.adapters.exported_folder import write_exported_folder
from aggregator.adapters.exported_state import exported_from_state
from aggregator.adapters.peft_folder import write_peft_folder
from aggregator.adapters.peft_state import adapter_from_state, beyond_peft
from aggregator.control import command
from aggregator.errors import StoreCorrupt
from aggregator.merge.tensor_file import Stored
from aggregator.rounds.merge_rule import merge_rule
from aggregator.store.home import Home
from aggregator.store.objects import ObjectStore
from aggregator.store.states import view_state

__all__ = ["ExportFormat", "ExportedVersion", "export_version"]


class ExportFormat(StrEnum):
    """How a version is written."""

    PEFT = "peft"
    """PEFT's folder, for ``peft.PeftModel.from_pretrained``: LoRA, and a head inside the base's architecture."""
    TRIBUTARY = "tributary"
    """The general folder (:mod:`protocol.exported`), for ``edge_client.load_exported``: every method."""


@dataclass(frozen=True, kw_only=True)
class ExportedVersion:
    """What was written."""

    version: int
    """Which version it is."""
    rank: int | None
    """LoRA rank; None: the run tunes nothing of low rank."""
    format: ExportFormat
    """How it is written."""


def export_version(
    home: Home,
    out: Path,
    *,
    rank: int | None = None,
    version: int | None = None,
    format: ExportFormat | None = None,
    overwrite: bool = False,
) -> ExportedVersion:
    """Writes the best adapter of a rank for one version.

    The journal's owner says which object the version is; the object itself never changes, so it is read here. It may be
    collected in between: then the owner is asked again.

    Args:
        home: The run's home.
        out: Folder to write.
        rank: LoRA rank, at least 1; None: the highest that the run's devices may train.
        version: Which version; None: the latest.
        format: What to write; None: PEFT's folder where that can hold the run, else the general one.
        overwrite: Replace ``out`` if it is not empty.

    Raises:
        ConfigError: There is no such version.
        MergeError: The rank is no rank, or PEFT's folder is asked for and cannot hold the run.
        AdapterError: The folder cannot be written.
    """
    found, stored = _version(home, version)
    manifest, config = home.manifest(), home.config()
    strategy = merge_rule(config).strategy
    offset = strategy.offset(strategy.of_tensors(stored, manifest), manifest)
    slots = manifest.rank_max if rank is None else rank
    chosen = format or (ExportFormat.TRIBUTARY if beyond_peft(manifest) else ExportFormat.PEFT)
    if chosen is ExportFormat.PEFT:
        write_peft_folder(out, adapter_from_state(offset, manifest, slots, seed=config.seed), overwrite=overwrite)
    else:
        write_exported_folder(out, exported_from_state(offset, manifest, slots, seed=config.seed), overwrite=overwrite)
    return ExportedVersion(version=found["version"], rank=slots if manifest.low_rank else None, format=chosen)


def _version(home: Home, version: int | None) -> tuple[dict[str, Any], Stored]:
    """What the journal says of a version, and its state, mapped: it stays readable when it is collected."""
    objects, missing = ObjectStore(home.objects), None
    while True:
        found = command(home, "version", version=version)
        try:
            return found, view_state(objects, found["state"])
        except StoreCorrupt:
            if found["state"] == missing:
                raise
            missing = found["state"]
