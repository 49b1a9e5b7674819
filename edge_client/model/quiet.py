"""Keeps other libraries' load reports, bars and hints off the user's terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quiet_forward", "quiet_loading", "silence_kernel_hint"]

_FORWARD_LOGGER = "bitsandbytes.autograd._functions"
"""Says at every int8 forward that inputs are cast to float16, which is how LLM.int8() works."""
_KERNEL_LOGGER = "bitsandbytes.backends.cpu.ops"
"""Says at import, where the CPU has AVX512-BF16, that a package is missing which only speeds up inference."""


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences transformers' load report and progress bar, and what PEFT 0.21 sets off while it wraps a model."""
    from transformers.utils import logging as untyped

    transformers_logging: Any = untyped
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def quiet_forward() -> Iterator[None]:
    """Silences bitsandbytes' hint at every int8 forward pass."""
    logger = logging.getLogger(_FORWARD_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def silence_kernel_hint() -> None:
    """Silences bitsandbytes' hint at import, for good: for command lines, whose process and log are their own."""
    logging.getLogger(_KERNEL_LOGGER).setLevel(logging.ERROR)
