"""The noise on a merge: how it is spread, and who can draw it again."""

import itertools

import numpy as np
import pytest

from aggregator.merge.errors import MergeError
from aggregator.privacy.noise import GaussianNoise

SECRET = bytes(range(32))


@pytest.mark.parametrize("deviation", [1e-3, 1.0, 40.0])
def test_it_is_gaussian_of_its_deviation(deviation):
    values = GaussianNoise.of_cohort(deviation, SECRET, 1, ["a"]).values("w", (300, 100)) / deviation
    assert np.std(values) == pytest.approx(1.0, abs=0.02)  # 5 % off would be 12 deviations of this estimate
    assert np.mean(values) == pytest.approx(0.0, abs=0.03)
    assert np.mean(np.abs(values) > 1.96) == pytest.approx(0.05, abs=0.01)
    assert np.mean(np.abs(values) > 3.0) == pytest.approx(0.0027, abs=0.0015)


def test_each_trainable_round_cohort_and_secret_has_noise_of_its_own_and_a_restart_has_the_same():
    def drawn(secret=SECRET, number=1, updates=("a", "b"), name="w"):
        return GaussianNoise.of_cohort(1.0, secret, number, updates).values(name, (50, 40)).ravel()

    assert np.array_equal(drawn(), drawn())
    of_cohorts = [drawn(updates=updates) for updates in (("a",), ("ab",))]
    others = [drawn(), drawn(name="v"), drawn(number=2), *of_cohorts, drawn(secret=SECRET[::-1])]
    for one, other in itertools.combinations(others, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def test_the_secret_is_not_printed():
    noise = GaussianNoise(deviation=1.0, seed=SECRET)
    assert "seed" not in repr(noise)


@pytest.mark.parametrize(("deviation", "seed"), [(0.0, SECRET), (-1.0, SECRET), (np.inf, SECRET), (1.0, b"short")])
def test_what_is_no_noise_is_refused(deviation, seed):
    with pytest.raises(MergeError, match="noise needs"):
        GaussianNoise(deviation=deviation, seed=seed)
