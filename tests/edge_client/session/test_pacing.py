"""Back-off and chunk size."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from edge_client.session.pacing import ChunkSizer, backoff_s
from protocol import limits


@given(attempt=st.integers(0, 10_000), seed=st.integers(0, 999))
def test_back_off_is_spread_over_its_window_and_never_above_two_minutes(attempt, seed):
    assert 0.0 <= backoff_s(attempt, random.Random(seed)) <= min(120.0, 2.0 ** min(attempt, 7))


def test_devices_that_failed_together_do_not_come_back_together():
    delays = sorted(backoff_s(7, random.Random(seed)) for seed in range(1000))
    assert delays[100] < 20.0
    assert delays[900] > 100.0


@given(rate=st.floats(64 << 10, 1 << 34), chunk_max=st.sampled_from([64 << 10, 1 << 20]))
def test_the_chunk_size_settles_where_one_chunk_takes_half_a_second_to_one(rate, chunk_max):
    sizer = ChunkSizer(chunk_max)
    for _ in range(12):
        sizer.observe(sizer.bytes, sizer.bytes / rate)
    seconds = sizer.bytes / rate
    assert seconds <= 1.0
    assert seconds > 0.5 or sizer.bytes == chunk_max


def test_the_chunk_size_never_leaves_its_bounds():
    sizer = ChunkSizer(1 << 20)
    for _ in range(20):
        sizer.observe(1, 60.0)
    assert sizer.bytes == limits.CHUNK_MIN_BYTES
    for _ in range(20):
        sizer.observe(1 << 20, 0.0)
    assert sizer.bytes == 1 << 20
