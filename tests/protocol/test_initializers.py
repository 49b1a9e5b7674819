"""Starting values: what both sides evaluate, and so may never change."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocol.initializers import Distribution, Initializer, fresh_rows

SEEDS = st.integers(0, (1 << 63) - 1)


@given(SEEDS, st.text(st.characters(exclude_categories=["Cs"]), max_size=9), st.integers(1, 9), st.integers(0, 6))
def test_a_fresh_row_does_not_depend_on_which_others_are_asked_for(seed: int, name: str, n: int, slots: int) -> None:
    rows = fresh_rows(seed, name, range(slots), n)
    assert (rows.shape, rows.dtype) == ((slots, n), np.float32)
    for slot in range(slots):
        assert np.array_equal(fresh_rows(seed, name, range(slot, slot + 1), n)[0], rows[slot])


def test_modules_seeds_and_slots_have_streams_of_their_own() -> None:
    streams = [(0, "q"), (1, "q"), (0, "k"), (0, "qq"), (1 << 62, "q")]
    rows = np.concatenate([fresh_rows(seed, name, range(3), 8) for seed, name in streams])
    assert len({row.tobytes() for row in rows}) == 15


def test_fresh_rows_have_the_variance_of_pefts_own_start() -> None:
    rows = fresh_rows(0, "q", range(64), 768)
    assert abs(np.linalg.norm(rows, axis=1).mean() - 3**-0.5) < 0.01
    assert np.abs(rows).max() <= 768**-0.5


@given(SEEDS, st.lists(st.integers(1, 4), max_size=3).map(tuple), st.floats(0, 10))
def test_uniform_values_stay_inside_their_scale(seed: int, shape: tuple[int, ...], scale: float) -> None:
    values = Initializer(distribution=Distribution.UNIFORM, scale=scale, seed=seed).values(shape)
    assert (values.shape, values.dtype) == (shape, np.float32)
    assert (np.abs(values) <= np.float32(scale)).all()


def test_normal_values_are_normal() -> None:
    values = Initializer(distribution=Distribution.NORMAL, scale=0.02, seed=3).values((200, 500)) / 0.02
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert abs((values**4).mean() - 3) < 0.1


def test_zeros_ignore_scale_and_seed() -> None:
    assert not Initializer(distribution=Distribution.ZEROS, scale=3.0, seed=9).values((2, 3)).any()
