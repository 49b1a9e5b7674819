"""What the flags have in common that every benchmark takes: which preset, which seed, where to write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.command_line import UsageError
from benchmarks.figure import PLOT_FAULT, can_plot

__all__ = ["absolute", "flag_faults", "folder_fault", "refuse"]


def flag_faults(
    presets: Collection[str], *, preset: str, seed: str, files: Mapping[str, str | None], **texts: str | None
) -> list[str]:
    """What is wrong with the flags as they were typed, a line each; empty if nothing is.

    Args:
        presets: The benchmark's.
        preset: Which of them.
        seed: A whole number from 0 below 2³¹.
        files: Files to write, by flag; None: none.
        texts: Other flags that take text, if they are given.
    """
    # fire gives True for a flag without a value, whatever the annotation says
    given = {name: text for name, text in {**files, **texts}.items() if text is not None}
    faults = [f"--{name}: expected text, got nothing" for name, text in given.items() if text in (True, "")]
    if preset not in presets:
        faults.append(f"--preset: expected one of {', '.join(presets)}, got {preset!r}")
    if not (str(seed).isdecimal() and int(seed) < 1 << 31):
        faults.append(f"--seed: expected a whole number from 0, got {seed!r}")
    written = {name: path for name, path in files.items() if isinstance(path, str) and path}
    parents = {name: Path(path).absolute().parent for name, path in written.items()}
    homeless = {name: parent for name, parent in parents.items() if not parent.is_dir()}
    faults += [f"--{name}: there is no folder {parent}" for name, parent in homeless.items()]
    faults += [
        f"--{name}: expected a file, {path} is a folder" for name, path in written.items() if Path(path).is_dir()
    ]
    return faults + [PLOT_FAULT] * ("plot" in written and not can_plot())


def folder_fault(name: str, folder: str | None) -> list[str]:
    """What is wrong with a folder that is to be new or empty, a line; empty if nothing is."""
    if not isinstance(folder, str) or not Path(folder).exists():
        return []
    if Path(folder).is_dir() and not any(Path(folder).iterdir()):
        return []
    return [f"--{name}: expected a new or empty folder, there is something at {folder}"]


def refuse(faults: Sequence[str]) -> None:
    """Ends a command that was mistyped; does nothing if there are no faults.

    Raises:
        UsageError: All that is wrong, in one message.
    """
    if faults:
        raise UsageError("\n".join(faults))


def absolute(path: str | None) -> Path | None:
    """The path, whatever the working directory becomes."""
    return None if path is None else Path(path).absolute()
