"""What an optimizer remembers, through its bytes."""

from dataclasses import replace

import numpy as np
import pytest

from aggregator.merge import Factors, GlobalState, Increment, MergeError
from aggregator.optimizers import Memory
from tests.aggregator.merge.strategies.bench import manifest_of

MANIFEST = manifest_of({"one": (9, 7)}, 4)


def memory() -> Memory:
    rng = np.random.default_rng(0)
    increment = Increment(
        low_rank={"one": Factors(rng.standard_normal((9, 2)), rng.standard_normal((2, 7)))},
        dense={"head": rng.standard_normal((2, 3))},
    )
    momentum = GlobalState.zeros(MANIFEST).add(increment)
    return Memory(steps=3, momentum=momentum, second={"head": rng.random((2, 3))})


def test_bytes_come_back_as_they_were() -> None:
    again = Memory.from_bytes(memory().to_bytes(), MANIFEST)
    assert again.steps == 3
    assert again.to_bytes() == memory().to_bytes()
    np.testing.assert_array_equal(again.second["head"], memory().second["head"])


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"garbage" * 10,
        memory().to_bytes()[:-1],
        GlobalState.zeros(MANIFEST).to_bytes(),
        replace(memory(), second={"head": np.zeros((3, 2))}).to_bytes(),
        replace(memory(), second={"other": np.zeros((2, 3))}).to_bytes(),
        replace(memory(), second={"head": np.full((2, 3), np.nan)}).to_bytes(),
        replace(memory(), steps=-1).to_bytes(),
    ],
)
def test_what_is_no_memory_of_this_run_is_refused(wrong: bytes) -> None:
    with pytest.raises(MergeError, match="memory"):
        Memory.from_bytes(wrong, MANIFEST)
