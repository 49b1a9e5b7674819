"""The device's accountant: ε against known values, and what is admitted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, get_epsilon_gaussian
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from edge_client.errors import BudgetSpentError, ConfigError, PrivacyError
from edge_client.privacy import Accountant, epsilon
from edge_client.storage.ledger import Charge, Ledger
from protocol.assignment import AssignmentKind

PRIVATE = {"noise_multiplier": 1.0, "batch_size": 10, "epochs": 2.0}


@pytest.fixture
def accountant(tmp_path):
    def open_(epsilon_max: float | None = None) -> Accountant:
        return Accountant(Ledger(tmp_path / "privacy.json"), epsilon_max)

    return open_


def charge(q: float, sigma: float, steps: int) -> Charge:
    return Charge(sampling_rate=q, noise_multiplier=sigma, steps=steps)


def test_the_example_of_the_paper_costs_no_more_than_the_paper_says():
    # Abadi et al. 2016, arXiv:1607.00133, section 3.2: q = 0.01, σ = 4, δ = 1e-5, 10 000 steps: ε = 1.26 by the moments
    # accountant. Its bound of the tail, min over α of RDP(α) + log(1/δ)/(α - 1), is looser than today's.
    paper = charge(0.01, 4.0, 10_000)
    orders = np.arange(2, 65)
    library = RdpAccountant(list(orders))
    library.compose(PoissonSampledDpEvent(0.01, GaussianDpEvent(4.0)), 10_000)
    moments = np.min(library._rdp + math.log(1e5) / (orders - 1))
    assert moments == pytest.approx(1.26, abs=0.01)
    assert epsilon([paper], 1e-5) == pytest.approx(1.0355, abs=1e-3)


@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.01, 1.0, 1000), (0.5, 2.0, 30)])
def test_it_agrees_with_the_librarys_own_accountants(q, sigma, steps):
    event = PoissonSampledDpEvent(q, GaussianDpEvent(sigma))
    by_default, tight = RdpAccountant(), PLDAccountant(value_discretization_interval=1e-2)
    by_default.compose(event, steps)
    tight.compose(event, steps)
    found = epsilon([charge(q, sigma, steps)], 1e-5)
    assert found == pytest.approx(by_default.get_epsilon(1e-5), rel=0.02)
    assert found == pytest.approx(tight.get_epsilon(1e-5), rel=0.2)  # by another method altogether


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_a_step_over_all_the_data_costs_what_the_gaussian_mechanism_does(sigma):
    exact = get_epsilon_gaussian(sigma, 1e-5)  # Balle, Wang 2018, arXiv:1805.06530, theorem 8
    assert exact <= epsilon([charge(1.0, sigma, 1)], 1e-5) <= 1.12 * exact


@pytest.mark.parametrize("q", [1e-6, 0.1, 1.0])
def test_less_noise_never_costs_less_down_to_the_least_that_is_admitted(q):
    found = [epsilon([charge(q, sigma, 10)], 1e-5) for sigma in (0.01, 0.03, 0.1, 0.5, 1.0, 10.0)]
    assert found == sorted(found, reverse=True)
    assert all(math.isfinite(each) for each in found)


def test_rounds_compose_into_the_cost_of_one_long_round_and_differing_ones_add():
    one = epsilon([charge(0.1, 1.5, 300)], 1e-5)
    assert epsilon([charge(0.1, 1.5, 100)] * 3, 1e-5) == pytest.approx(one, rel=1e-9)
    assert epsilon([charge(0.1, 1.5, 300), charge(0.2, 1.5, 1)], 1e-5) > one
    assert epsilon([charge(0.1, 1.5, 300)], 1e-6) > one
    assert epsilon([], 1e-5) == 0.0


def test_what_is_booked_is_what_was_trained_and_a_restart_remembers(accountant, assign):
    books = accountant()
    assert books.spent is None
    for _ in range(2):
        paid = books.admit(assign(2, **PRIVATE), 100, capable=True)
        assert paid == charge(0.1, 1.0, 20)
        books.charge(paid, 1e-5)
    assert books.spent.epsilon == epsilon([charge(0.1, 1.0, 40)], 1e-5)
    assert accountant().spent == books.spent


def test_a_round_beyond_the_budget_is_declined_and_costs_nothing(accountant, assign):
    books = accountant()
    one, two = (epsilon([charge(0.1, 1.0, 20 * rounds)], 1e-5) for rounds in (1, 2))
    given = assign(2, **PRIVATE, epsilon_max=(one + two) / 2)
    books.charge(books.admit(given, 100, capable=True), 1e-5)
    with pytest.raises(BudgetSpentError, match=f"from ε = {one:.4g} to {two:.4g} at δ = 1e-05, and its budget is"):
        books.admit(given, 100, capable=True)
    assert books.spent.epsilon == one
    assert accountant().spent.epsilon == one


@pytest.mark.parametrize(("own", "runs"), [(0.1, None), (0.1, 1e6), (1e6, 0.1)])
def test_the_lower_budget_counts(accountant, assign, own, runs):
    with pytest.raises(BudgetSpentError, match=r"its budget is ε = 0\.1:"):
        accountant(own).admit(assign(2, **PRIVATE, epsilon_max=runs), 100, capable=True)


def test_a_round_without_a_step_costs_nothing(accountant, assign):
    books, none = accountant(), assign(2, **PRIVATE | {"epochs": 0.0})
    assert books.charge(books.admit(none, 100, capable=True), 1e-5).epsilon == 0.0
    spent = books.charge(books.admit(assign(2, **PRIVATE), 100, capable=True), 1e-5)
    assert spent.epsilon == epsilon([charge(0.1, 1.0, 20)], 1e-5)


def test_a_run_without_noise_is_nobodys_business_unless_the_device_has_a_budget(accountant, assign):
    assert accountant().admit(assign(2), 100, capable=False) is None
    for kind in AssignmentKind:
        with pytest.raises(PrivacyError):
            accountant(5.0).admit(assign(2, kind=kind), 100, capable=True)


@pytest.mark.parametrize("kind", [AssignmentKind.EVALUATE, AssignmentKind.PROBE])
def test_a_private_device_tells_no_metrics(accountant, assign, kind):
    with pytest.raises(PrivacyError, match="without noise"):
        accountant().admit(assign(2, kind=kind, **PRIVATE), 100, capable=True)


def test_once_private_a_device_never_trains_without_noise(accountant, assign):
    books = accountant()
    books.charge(books.admit(assign(2, **PRIVATE), 100, capable=True), 1e-5)
    with pytest.raises(PrivacyError, match="without noise"):
        accountant().admit(assign(2), 100, capable=True)


def test_a_trainer_that_cannot_is_not_asked(accountant, assign):
    with pytest.raises(PrivacyError, match="this trainer does not do"):
        accountant().admit(assign(2, **PRIVATE), 100, capable=False)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"clip_norm": 0.0}, "clip_norm is 0"),
        ({"noise_multiplier": 1e-160}, "next to no noise"),
        ({"batch_size": 101}, "probability above 1"),
        ({"delta": 0.01}, "below 1/100"),
        ({"delta": 0.0}, "above 0"),
    ],
)
def test_settings_that_are_not_dp_sgd_are_refused(accountant, assign, changed, named):
    given = assign(2, **PRIVATE)
    with pytest.raises(ConfigError, match=named):
        accountant().admit(replace(given, local=replace(given.local, **changed)), 100, capable=True)
