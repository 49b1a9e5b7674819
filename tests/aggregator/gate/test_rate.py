from hypothesis import given
from hypothesis import strategies as st

from aggregator.gate.rate import RateLimit


@given(st.integers(1, 20), st.lists(st.floats(0.0, 30.0), max_size=200))
def test_no_window_of_time_ever_sees_more_than_a_bucket_and_what_flowed_in(count: int, gaps: list[float]) -> None:
    limit, now, granted = RateLimit(count, per_s=60.0), 0.0, []
    for gap in gaps:
        now += gap
        if limit.allows("one", now):
            granted.append(now)
    for index, start in enumerate(granted):
        for more, end in enumerate(granted[index:], start=1):
            assert more <= count + (end - start) * count / 60.0 + 1e-6


def test_names_do_not_share_a_bucket() -> None:
    limit = RateLimit(1, per_s=60.0)
    assert [limit.allows(name, 0.0) for name in ("a", "b", "a")] == [True, True, False]
