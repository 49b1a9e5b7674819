"""A progress bar on stderr for people who watch; needs tqdm, which comes with the extra ``client``."""

from __future__ import annotations

from typing import Any

from edge_client.errors import ConfigError
from edge_client.trainer import Progress

__all__ = ["ProgressBar"]


class ProgressBar:
    """One bar per round.

    Raises:
        ConfigError: tqdm is not installed.
    """

    def __init__(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ConfigError("progress_bar: needs tqdm: pip install tqdm, or leave it off") from error
        self._make = tqdm
        self._bar: Any = None
        self._round: int | None = None

    def __call__(self, progress: Progress) -> None:
        """Shows one optimizer step."""
        if self._round != progress.round:
            self.close()
            self._bar = self._make(total=progress.steps, desc=f"round {progress.round}", unit="step", leave=False)
            self._round = progress.round
        self._bar.n = progress.step
        self._bar.set_postfix_str(f"loss {progress.loss:.4f}")

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
