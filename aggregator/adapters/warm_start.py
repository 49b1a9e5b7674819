"""Where a run starts that is given a folder: an exported run, or anybody's PEFT adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aggregator.adapters.exported_folder import is_exported_folder, read_exported_folder
from aggregator.adapters.exported_state import state_from_exported
from aggregator.adapters.peft_folder import read_peft_folder
from aggregator.adapters.peft_state import state_from_adapter

if TYPE_CHECKING:
    from aggregator.merge import GlobalState
    from protocol.manifest import Manifest

__all__ = ["start_from_folder"]


def start_from_folder(folder: Path, manifest: Manifest) -> GlobalState:
    """The state that a folder holds.

    Args:
        folder: What ``tributary-aggregator export`` wrote, in either format, or a PEFT LoRA folder.
        manifest: The run that starts.

    Raises:
        AdapterError: It is neither, or broken.
        MergeError: It does not fit the run.
    """
    if is_exported_folder(folder):
        return state_from_exported(read_exported_folder(folder), manifest)
    return state_from_adapter(read_peft_folder(folder), manifest)
