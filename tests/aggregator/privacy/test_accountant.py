"""What the noise on the merges costs, against the Gaussian mechanism's closed form."""

import math

import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant

from aggregator.privacy.accountant import epsilon


def delta_of(sigma: float, eps: float) -> float:
    """``δ(ε)`` of one Gaussian noise: Balle, Wang 2018, arXiv:1805.06530, theorem 8."""

    def cdf(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * cdf(-0.5 / sigma - eps * sigma)


@pytest.mark.parametrize("sigma", [0.8, 1.0, 5.0])
def test_one_merge_costs_what_the_closed_form_says(sigma):
    assert delta_of(sigma, epsilon(sigma, 1, 1e-5)) == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize(("sigma", "rounds"), [(4.0, 10), (20.0, 300)])
def test_rounds_compose_as_the_librarys_numerical_accountant_says(sigma, rounds):
    accountant = PLDAccountant()
    accountant.compose(GaussianDpEvent(sigma), rounds)
    assert epsilon(sigma, rounds, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)


def test_nothing_merged_costs_nothing():
    assert epsilon(1.0, 0, 1e-5) == 0.0
