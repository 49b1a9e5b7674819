"""Private rounds as a whole device does them: what is told, what is declined, and what a kill leaves in the books."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_client.privacy import Accountant, epsilon
from edge_client.session.activities import Phase
from edge_client.storage.ledger import Charge, Ledger
from edge_client.storage.outbox import Outbox
from edge_client.trainers.numpy_trainer import NumpyTrainer
from protocol.assignment import AssignmentKind, LocalTraining
from protocol.messages import Decline, Offer, Ready
from protocol.messages import Task as TaskMessage

LOCAL = LocalTraining(noise_multiplier=1.0, batch_size=10, epochs=2.0)
ROUND = Charge(sampling_rate=0.1, noise_multiplier=1.0, steps=20)


class Private(NumpyTrainer):
    """Says that it trains privately; there is no data that could need it."""

    def info(self, manifest):
        return replace(super().info(manifest), private=True)


@pytest.fixture
def start(fake_aggregator, device):
    """A device in a run with these settings of local training."""

    def start(local=LOCAL, rounds=3, trainer=None, **settings):
        def asked(message):
            if isinstance(message, Ready) and aggregator.round <= rounds:
                return TaskMessage(q=message.q, payload=replace(aggregator.assignment, local=local).to_json())
            return None

        aggregator = fake_aggregator(rounds=rounds, intercept=asked, **settings)
        return aggregator, device(aggregator, trainer or Private(seed=1, num_examples=100))

    return start


def test_the_operator_is_told_what_it_costs_and_not_the_loss(start):
    aggregator, one = start()
    assert one.run().phase is Phase.FINISHED
    offers = [message for message in aggregator.heard if isinstance(message, Offer)]
    spent = [epsilon([replace(ROUND, steps=20 * rounds)], 1e-5) for rounds in (1, 2, 3)]
    assert [dict(offer.metrics) for offer in offers] == [{"epsilon": each, "delta": 1e-5} for each in spent]


def test_a_device_whose_budget_is_spent_declines_and_still_gets_the_final_adapter(start):
    budget = epsilon([replace(ROUND, steps=50)], 1e-5)
    aggregator, one = start(replace(LOCAL, epsilon_max=budget))
    one.run(until=lambda: len(aggregator.declined) == 2)
    assert one.trainer.rounds == [1, 2]
    assert f"its budget is ε = {budget:g}" in aggregator.declined[0].reason
    assert "its budget" in one.settled[-1].reason
    aggregator.rounds = 2  # the others finish the run
    one.engine._later(0.0)
    aggregator.intercept = lambda message: None
    driver = one.run()
    assert (driver.phase, driver.error) == (Phase.FINISHED, None)
    assert one.home.ledger.charges == (replace(ROUND, steps=40),)


def test_a_broken_link_does_not_lose_the_refusal_of_a_spent_device(start):
    aggregator, one = start(replace(LOCAL, epsilon_max=0.1))
    asked = aggregator.intercept

    def lose_the_first_answer(message):
        if isinstance(message, Decline) and not aggregator.declined:
            aggregator.cuts = frozenset({aggregator.passed + 1})
        return asked(message)

    aggregator.intercept = lose_the_first_answer
    one.run(until=lambda: len(aggregator.declined) == 2)
    kinds = [message.type for message in aggregator.heard]
    first = kinds.index("DECLINE")
    assert kinds[first:] == ["DECLINE", "HELLO", "DECLINE"]
    assert not one.engine.phase.over


@pytest.mark.parametrize("kind", [AssignmentKind.EVALUATE, AssignmentKind.PROBE])
def test_metrics_of_the_data_are_refused_and_the_app_is_told(start, kind):
    aggregator, one = start(kinds=(kind,))
    driver = one.run()
    assert driver.phase is Phase.FAILED
    assert "without noise" in str(driver.error)
    assert not aggregator.reports
    assert "without noise" in aggregator.declined[0].reason


def test_a_trainer_that_knows_no_privacy_is_not_asked_to_train(start):
    aggregator, one = start(trainer=NumpyTrainer(seed=1, num_examples=100))
    assert "this trainer does not do" in str(one.run().error)
    assert one.trainer.rounds == []
    assert not aggregator.durable


@pytest.mark.parametrize(
    ("where", "steps"), [pytest.param("between-steps", 20, marks=pytest.mark.slow), ("unsent", 40)]
)
def test_a_killed_device_remembers_all_that_can_have_left_it(tmp_path, where, steps):
    script = Path(__file__).with_name("private_device.py")
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path), where], capture_output=True, text=True, check=False, timeout=60
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [item.assignment.round for item in Outbox(tmp_path / "outbox").entries()] == [1]
    ledger = Ledger(tmp_path / "privacy.json")
    assert ledger.charges == (replace(ROUND, steps=steps),)
    assert Accountant(ledger).spent.epsilon == epsilon([replace(ROUND, steps=steps)], 1e-5)
