"""Writes a folder of files that appears whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from aggregator.errors import AdapterError

__all__ = ["write_whole_folder"]


def write_whole_folder(folder: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Writes a folder; what it replaces is not removed before.

    Args:
        folder: Where to; its parents are made.
        files: Contents by name.
        overwrite: Replace a folder that is not empty.

    Raises:
        AdapterError: The folder cannot be written, or exists, is not empty and ``overwrite`` is off.
    """
    if folder.exists() and not (folder.is_dir() and (overwrite or not any(folder.iterdir()))):
        raise AdapterError(f"{folder} exists and is not an empty folder; choose another, or ask to overwrite it")
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    replaced = fresh.with_name(f"{fresh.name}.replaced")
    try:
        fresh.mkdir(parents=True)
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        if folder.exists():
            folder.rename(replaced)
        try:
            fresh.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise
        if replaced.is_symlink():
            replaced.unlink()
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
