"""EdgeClient over real sockets, as an app uses it."""

from __future__ import annotations

import stat
import threading
from dataclasses import replace

import pytest

from edge_client import ConfigError, EdgeClient, EdgeClientError, NotEnrolledError, Phase, TicketError
from edge_client.errors import PrivacyError
from edge_client.trainers.numpy_trainer import NumpyTrainer
from protocol.assignment import LocalTraining
from protocol.messages import Ready
from protocol.messages import Task as TaskMessage


class SlowTrainer(NumpyTrainer):
    """Trains until it is cancelled, and says when it has begun."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.begun, self.polls = threading.Event(), 0

    def run(self, assignment, handout, *, cancelled, progress):
        from edge_client import Cancelled

        self.begun.set()
        while not cancelled():
            self.polls += 1
        raise Cancelled


def make_client(server, folder, trainer=None, ticket=None, **options):
    return EdgeClient(
        ticket or server.ticket(), trainer=trainer or NumpyTrainer(seed=1), state_dir=folder, name="d", **options
    )


def test_a_ticket_is_all_a_device_needs(loopback, tmp_path):
    server, rounds, steps = loopback(rounds=3), [], []
    trainer = NumpyTrainer(seed=1)
    client = make_client(server, tmp_path / "s", trainer, on_round=rounds.append, on_progress=steps.append)
    summary = client.run()
    assert (summary.finished, summary.version, summary.accepted) == (True, 3, 3)
    assert [(result.round, result.accepted) for result in rounds] == [(1, True), (2, True), (3, True)]
    assert {step.round for step in steps} == {1, 2, 3}
    assert trainer.installed is not None
    assert client.status.state is Phase.FINISHED
    assert (
        client.status.bytes_sent
        == summary.bytes_sent
        > sum(upload[0].size for upload in server.aggregator.receivers.values())
    )
    assert stat.S_IMODE((tmp_path / "s" / "device.key").stat().st_mode) == 0o600


def test_an_enrolled_device_comes_back_without_its_token(loopback, tmp_path):
    server = loopback(rounds=1)
    make_client(server, tmp_path / "s").run()
    server.tokens["1" * 32] = "someone else"
    assert make_client(server, tmp_path / "s").run().finished


def test_a_key_the_data_port_has_not_noticed_yet_is_tried_again_after_enrolment(loopback, tmp_path):
    server = loopback(rounds=1)
    server.slow_to_notice = 1
    assert make_client(server, tmp_path / "s").run().finished


def test_a_used_ticket_is_a_ticket_error(loopback, tmp_path):
    server = loopback()
    make_client(server, tmp_path / "one").run()
    with pytest.raises(TicketError, match="used"):
        make_client(server, tmp_path / "two").run()


def test_a_key_not_enrolled_by_hand_is_an_error_that_says_so(loopback, tmp_path):
    server = loopback()
    with pytest.raises(NotEnrolledError):
        make_client(server, tmp_path / "s", ticket=server.ticket(token=None)).run()


def test_a_ticket_for_another_run_than_the_folders_is_refused(loopback, tmp_path):
    server, other = loopback(rounds=1), loopback(rounds=1)
    make_client(server, tmp_path / "s").run()
    with pytest.raises(TicketError, match="another state_dir"):
        make_client(other, tmp_path / "s").run()


def test_stop_ends_training_at_the_next_step(loopback, tmp_path):
    trainer = SlowTrainer()
    client = make_client(loopback(), tmp_path / "s", trainer)
    client.start()
    assert trainer.begun.wait(10)
    with pytest.raises(EdgeClientError, match="already"):
        client.run()
    client.stop()
    summary = client.wait(10)
    assert summary is not None
    assert not summary.finished
    assert client.status.state is Phase.STOPPED


def test_pause_holds_training_between_two_steps(loopback, tmp_path):
    trainer = SlowTrainer()
    with make_client(loopback(), tmp_path / "s", trainer) as client:
        client.start()
        assert trainer.begun.wait(10)
        client.pause()
        seen = -1
        while seen != trainer.polls:  # the poll that blocks is the last one
            seen = trainer.polls
            threading.Event().wait(0.05)
        client.resume()
        for _ in range(200):
            if trainer.polls > seen:
                break
            threading.Event().wait(0.02)
        assert trainer.polls > seen


def test_an_error_in_a_started_client_is_raised_where_it_is_waited_for(loopback, tmp_path):
    server = loopback()
    client = make_client(server, tmp_path / "s", ticket=server.ticket(token=None))
    client.start()
    with pytest.raises(NotEnrolledError):
        client.wait(10)
    assert client.status.state is Phase.FAILED
    assert client.status.last_error


def test_all_faults_are_named_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        EdgeClient(tmp_path / "none", rank=0, quantization="nf5", lora_alpha=-1, state_dir=__file__)
    message = str(caught.value)
    assert all(word in message for word in ("model and data", "rank", "nf5", "lora_alpha", "state_dir", "ticket"))


def test_a_missing_ticket_alone_is_a_ticket_error(tmp_path):
    with pytest.raises(TicketError):
        EdgeClient(tmp_path / "none", trainer=NumpyTrainer(seed=1))


def test_two_clients_cannot_share_a_folder(loopback, tmp_path):
    trainer, server = SlowTrainer(), loopback()
    with make_client(server, tmp_path / "s", trainer) as first:
        first.start()
        assert trainer.begun.wait(10)
        with pytest.raises(ConfigError, match="in use"):
            make_client(server, tmp_path / "s").run()


def test_the_default_folder_is_the_users_and_keyed_by_ticket(loopback, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    server = loopback()
    folders = {
        EdgeClient(server.ticket(token), trainer=NumpyTrainer(seed=1)).state_dir for token in ("1" * 32, "2" * 32)
    }
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "tributary"}


class PrivateTrainer(NumpyTrainer):
    """Says that it trains privately; there is no data that could need it."""

    def info(self, manifest):
        return replace(super().info(manifest), private=True)


def test_an_app_sees_what_private_rounds_have_cost_after_a_restart_too(loopback, tmp_path):
    def ask_for_noise(message):
        if not isinstance(message, Ready) or server.aggregator.round > rounds:
            return None
        local = LocalTraining(noise_multiplier=1.0, batch_size=10)
        return TaskMessage(q=message.q, payload=replace(server.aggregator.assignment, local=local).to_json())

    rounds, server = 1, loopback(rounds=2, intercept=ask_for_noise)
    client = make_client(
        server, tmp_path / "s", PrivateTrainer(seed=1), epsilon_max=50.0, on_round=lambda _: client.stop()
    )
    assert client.status.epsilon is None
    first = client.run()
    assert 0 < first.epsilon == client.status.epsilon < 50
    assert first.delta == client.status.delta == 1e-5
    rounds = 2
    second = make_client(server, tmp_path / "s", PrivateTrainer(seed=1)).run()
    assert second.finished
    assert second.epsilon > first.epsilon


def test_a_device_with_a_budget_of_its_own_trains_with_noise_or_not_at_all(loopback, tmp_path):
    server = loopback(rounds=1)
    with pytest.raises(PrivacyError, match="without noise"):
        make_client(server, tmp_path / "s", PrivateTrainer(seed=1), epsilon_max=1.0).run()
    assert not server.aggregator.durable


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), float("inf"), "3"])
def test_a_budget_that_is_none_is_named(loopback, tmp_path, budget):
    with pytest.raises(ConfigError, match="epsilon_max: expected a number above 0"):
        make_client(loopback(), tmp_path / "s", epsilon_max=budget)
