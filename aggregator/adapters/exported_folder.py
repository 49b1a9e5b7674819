"""Folders that hold the result of a run of any tuning method: its manifest beside one safetensors file."""

from __future__ import annotations

from pathlib import Path

from aggregator.adapters.whole_folder import write_whole_folder
from aggregator.errors import AdapterError
from protocol.errors import RemoteProtocolError
from protocol.exported import FILES, MANIFEST_FILE, ExportedAdapter

__all__ = ["is_exported_folder", "read_exported_folder", "write_exported_folder"]


def is_exported_folder(folder: Path) -> bool:
    """Whether a folder is meant to be one of these; that it can be read is not said."""
    return (folder / MANIFEST_FILE).is_file()


def read_exported_folder(folder: Path) -> ExportedAdapter:
    """Reads what :func:`write_exported_folder` wrote.

    Raises:
        AdapterError: A file is missing or broken, or does not fit the other one.
    """
    try:
        return ExportedAdapter.of_files({name: (folder / name).read_bytes() for name in FILES})
    except OSError as error:
        raise AdapterError(f"{folder} is not an exported run: {error}") from error
    except RemoteProtocolError as error:
        raise AdapterError(f"{folder} is not an exported run: {error}; export it again") from error


def write_exported_folder(folder: Path, exported: ExportedAdapter, *, overwrite: bool = False) -> None:
    """Writes a folder that ``edge_client.load_exported`` loads; it appears whole or not at all.

    Args:
        folder: Where to; its parents are made.
        exported: What to write.
        overwrite: Replace a folder that is not empty.

    Raises:
        AdapterError: The folder exists and is not empty, or cannot be written.
    """
    write_whole_folder(folder, exported.to_files(), overwrite=overwrite)
