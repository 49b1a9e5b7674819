import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.anonymous_memory import peak_growth_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's anonymous memory")
SHAPE = 1 << 22
BYTES = 8 * SHAPE


def worked_on(block) -> None:  # type: ignore[no-untyped-def]
    """Long enough to be seen."""
    for _ in range(20):
        block += 1.0


def test_what_a_call_takes_is_seen_though_it_gives_it_back() -> None:
    assert BYTES <= peak_growth_bytes(lambda: worked_on(np.ones(SHAPE))) < 1.5 * BYTES


def test_what_a_file_stands_behind_does_not_count(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "file", np.float64, "w+", shape=(SHAPE,))
    assert peak_growth_bytes(lambda: worked_on(mapped)) < BYTES / 2
