"""Adapters in folders, PEFT's and those of every method: read, written, merged, turned into a run's state and back."""

from aggregator.adapters.exported_folder import read_exported_folder, write_exported_folder
from aggregator.adapters.merge_folders import merge_adapters, merge_folders
from aggregator.adapters.peft_adapter import PeftAdapter, PeftModule, adapter_of_tensors
from aggregator.adapters.peft_config import PeftConfig, PeftError, parse_config
from aggregator.adapters.peft_folder import read_peft_folder, write_peft_folder

__all__ = [
    "PeftAdapter",
    "PeftConfig",
    "PeftError",
    "PeftModule",
    "adapter_of_tensors",
    "merge_adapters",
    "merge_folders",
    "parse_config",
    "read_exported_folder",
    "read_peft_folder",
    "write_exported_folder",
    "write_peft_folder",
]
