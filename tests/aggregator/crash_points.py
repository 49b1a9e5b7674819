"""Named crash points: every step by which an aggregator changes the disk or tells a device something.

The steps of one thread are counted, each *before* it is taken. Between two of them nothing changes that outlives a
kill, so a kill at every step is a kill at every instruction. (An fsync changes nothing either: what a kill leaves, the
kernel has. Only a power cut tells them apart.) Production code knows nothing of it: the functions that take the steps
are replaced for as long as the points are installed.
"""

import functools
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aggregator.store.journal import Journal

ON_DISK = ("ftruncate", "mkdir", "posix_fallocate", "pwrite", "replace", "unlink")


class CrashPoints:
    """Counts steps, and ends the process at one of them.

    Args:
        at: Number of the step, from 0, before which to send SIGKILL to this process; None: only count.
        name: Only steps of this name are counted; None: all.
    """

    def __init__(self, at: int | None = None, name: str | None = None) -> None:
        self.reached: list[str] = []
        self._at, self._name = at, name
        self._method = ""

    def reach(self, name: str) -> None:
        """A step of this name is about to be taken."""
        if self._name in (None, name):
            self.reached.append(name)
            if len(self.reached) - 1 == self._at:
                os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Notices the commits of every journal, by method, and what is done to any file of an object store."""
        with ExitStack() as stack:
            for name, method in list(vars(Journal).items()):
                if callable(method) and not name.startswith("_"):
                    stack.enter_context(patch.object(Journal, name, self._named(method)))
            stack.enter_context(patch.object(Journal, "_do", self._committing(Journal._do)))
            for name in ON_DISK:
                stack.enter_context(patch.object(os, name, self._on_disk(name, getattr(os, name))))
            yield

    def _named(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def called(*args: Any, **options: Any) -> Any:
            outer, self._method = self._method, method.__name__
            try:
                return method(*args, **options)
            finally:
                self._method = outer

        return called

    def _committing(self, do: Callable[..., int]) -> Callable[..., int]:
        def called(journal: Journal, sql: str, *values: object) -> int:
            if sql == "COMMIT":
                self.reach(f"commit {self._method}")
            return do(journal, sql, *values)

        return called

    def _on_disk(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(target: Any, *args: Any, **options: Any) -> Any:
            path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else Path(target)
            kind = _kind(path)
            if kind is not None and not (name == "mkdir" and path.exists()):
                self.reach(f"{name} {kind}")
            return function(target, *args, **options)

        return called


def _kind(path: Path) -> str | None:
    """What a path is to an object store; None if it is nothing."""
    if path.parent.name == "partial":
        return "new object" if path.name.startswith("put-") else "upload"
    if re.fullmatch("[0-9a-f]{64}", path.name):
        return "object"
    return "folder" if path.name in ("objects", "partial") or path.parent.name == "objects" else None
