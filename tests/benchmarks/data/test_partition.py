import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.data.partition import deal_by_label


@given(
    st.lists(st.integers(0, 3), min_size=6, max_size=80),
    st.integers(1, 6),
    st.sampled_from([0.05, 1.0, 100.0]),
    st.integers(0, 2**32 - 1),
)
def test_every_example_goes_to_exactly_one_device_and_none_is_empty(
    labels: list[int], devices: int, concentration: float, seed: int
) -> None:
    parts = deal_by_label(labels, devices, concentration=concentration, rng=np.random.default_rng(seed))
    assert sorted(index for part in parts for index in part) == list(range(len(labels)))
    assert len(parts) == devices
    assert all(parts)


def test_concentration_decides_how_mixed_the_devices_are() -> None:
    labels = [0, 1] * 500

    def purity(concentration: float) -> float:
        parts = deal_by_label(labels, 4, concentration=concentration, rng=np.random.default_rng(0))
        shares = [np.mean([labels[index] for index in part]) for part in parts]
        return float(np.mean([max(share, 1 - share) for share in shares]))

    assert purity(0.05) > 0.8 > 0.6 > purity(1000.0)


def test_fewer_examples_than_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 examples"):
        deal_by_label([0, 1], 3, concentration=1.0, rng=np.random.default_rng(0))
