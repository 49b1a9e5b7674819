from hypothesis import given
from hypothesis import strategies as st

from edge_client.training.schedule import warmup_then_linear


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_then_falls_and_is_never_zero(steps, ratio):
    rates = [warmup_then_linear(step, steps, ratio) for step in range(steps)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == 1.0
    assert min(rates) > 0.0


def test_without_warm_up_it_starts_at_the_peak():
    assert warmup_then_linear(0, 10, 0.0) == 1.0
