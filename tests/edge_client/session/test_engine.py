"""The engine against an aggregator that breaks the link, refuses, stalls or lies."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_client
from edge_client.errors import (
    AggregatorError,
    BaseModelError,
    ConfigError,
    DataError,
    NotEnrolledError,
    TicketError,
)
from edge_client.session.activities import Phase
from edge_client.session.events import Pause, Resume, Stop
from edge_client.trainers.numpy_trainer import NumpyTrainer
from protocol.assignment import AssignmentKind
from protocol.errors import NackCode
from protocol.messages import Chunk, Credit, Data, Decline, Get, Nack, Offer, Ping, Ready, Wait, Welcome


def kinds_of(aggregator) -> list[str]:
    return [message.type for message in aggregator.heard]


def test_a_run_of_three_rounds_ends_with_the_final_adapter_installed(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=3)
    one = device(aggregator)
    driver = one.run()
    assert (driver.phase, driver.error) == (Phase.FINISHED, None)
    assert [number for number, _ in aggregator.durable] == one.trainer.rounds == [1, 2, 3]
    assert [settled.accepted for settled in one.settled] == [True] * 3
    assert driver.finished is not None
    assert driver.finished.version == 3
    assert one.home.outbox.entries() == []
    assert aggregator.heard[-1].type == "BYE"


def test_metrics_are_reported_where_no_update_is_asked_for(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=2, kinds=(AssignmentKind.EVALUATE, AssignmentKind.TRAIN))
    device(aggregator).run()
    assert [report.num_examples for report in aggregator.reports] == [7]
    assert "loss" in aggregator.reports[0].metrics
    assert len(aggregator.durable) == 1


@settings(max_examples=15)
@given(cuts=st.frozensets(st.integers(1, 60), max_size=12))
def test_wherever_the_link_breaks_every_round_is_trained_and_counted_once(fake_aggregator, device_in, cuts):
    aggregator = fake_aggregator(rounds=2, cuts=cuts)
    with tempfile.TemporaryDirectory() as folder:
        one = device_in(aggregator, Path(folder))
        driver = one.run()
        one.home.close()
    assert (driver.phase, driver.error) == (Phase.FINISHED, None)
    assert [number for number, _ in aggregator.durable] == one.trainer.rounds == [1, 2]


@pytest.mark.parametrize("active", [None, ("bias",)], ids=["one object", "two objects"])
@settings(max_examples=15)
@given(kills=st.frozensets(st.integers(1, 60), max_size=8), cuts=st.frozensets(st.integers(1, 60), max_size=4))
def test_wherever_the_process_dies_no_trained_round_is_trained_again(fake_aggregator, device_in, active, kills, cuts):
    aggregator = fake_aggregator(rounds=2, active=active, cuts=cuts, kills=kills)
    with tempfile.TemporaryDirectory() as folder:
        one = device_in(aggregator, Path(folder))
        driver = one.run()
        one.home.close()
    assert (driver.phase, driver.error) == (Phase.FINISHED, None)
    assert [number for number, _ in aggregator.durable] == one.trainer.rounds == [1, 2]


def test_an_update_in_the_outbox_is_offered_before_anything_is_asked_for(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=1)
    one = device(aggregator)
    one.run(until=lambda: bool(one.trainer.rounds))
    one.home.close()
    again = device(aggregator, folder=one.folder)
    aggregator.heard.clear()
    again.run()
    kinds = kinds_of(aggregator)
    assert kinds[:2] == ["HELLO", "OFFER"]
    assert again.trainer.rounds == []
    assert [number for number, _ in aggregator.durable] == [1]


def test_a_lost_acknowledgement_is_answered_with_the_same_acknowledgement(fake_aggregator, device):
    whole = fake_aggregator(rounds=1)
    device(whole).run()
    last_chunk = max(n for n, message in enumerate(whole.heard) if message.type == "CHUNK")
    aggregator = fake_aggregator(rounds=1, cuts=frozenset({2 * (last_chunk + 1)}))
    one = device(aggregator)
    one.run()
    assert kinds_of(aggregator).count("OFFER") == 2
    assert len(aggregator.durable) == 1
    assert one.trainer.rounds == [1]


def test_an_interrupted_upload_goes_on_where_it_stopped(fake_aggregator, device):
    whole = fake_aggregator(rounds=1)
    device(whole).run()
    chunks = [n for n, message in enumerate(whole.heard) if message.type == "CHUNK"]
    aggregator = fake_aggregator(rounds=1, cuts=frozenset({2 * chunks[-1] + 1}))
    device(aggregator).run()
    sent = sum(len(message.payload) for message in aggregator.heard if isinstance(message, Chunk))
    assert sent == sum(len(message.payload) for message in whole.heard if isinstance(message, Chunk))


def test_an_interrupted_download_goes_on_where_it_stopped(fake_aggregator, device):
    whole = fake_aggregator(rounds=1)
    device(whole).run()
    gets = [n for n, message in enumerate(whole.heard) if message.type == "GET"]
    aggregator = fake_aggregator(rounds=1, cuts=frozenset({2 * gets[-1] + 1}))
    device(aggregator).run()
    first = [m.offset for m in aggregator.heard if isinstance(m, Get) and m.digest == aggregator.handout.digest]
    assert first.count(0) == 1


def test_what_is_not_trained_is_fetched_once_for_all_rounds(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=3, active=("bias",))
    one = device(aggregator)
    driver = one.run()
    assert (driver.phase, driver.error) == (Phase.FINISHED, None)
    assert [number for number, _ in aggregator.durable] == one.trainer.rounds == [1, 2, 3]
    trained, rest = aggregator.parts
    asked = [m.digest for m in aggregator.heard if isinstance(m, Get) and m.offset == 0]
    assert trained.object_bytes < 1000 < rest.object_bytes
    assert asked[1:3] == [rest.digest, trained.digest]
    assert asked.count(rest.digest) == 1


def test_an_interrupted_hand_out_goes_on_where_it_stopped_after_a_restart(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=1)
    one = device(aggregator)
    one.run(until=lambda: sum(isinstance(m, Get) and m.digest == aggregator.handout.digest for m in aggregator.heard))
    one.restart()
    one.run()
    asked = [m.offset for m in aggregator.heard if isinstance(m, Get) and m.digest == aggregator.handout.digest]
    assert len(aggregator.durable) == 1
    assert len(set(asked)) == len(asked)


def test_the_manifest_is_fetched_once_for_all_processes(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=1)
    one = device(aggregator)
    one.run(until=lambda: bool(aggregator.durable))
    one.restart()
    one.run()
    assert sum(isinstance(m, Get) and m.digest == aggregator.manifest.digest for m in aggregator.heard) == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (NackCode.NOT_ENROLLED, NotEnrolledError),
        (NackCode.REVOKED, NotEnrolledError),
        (NackCode.WRONG_RUN, TicketError),
        (NackCode.WRONG_BASE, BaseModelError),
        (NackCode.RANK, ConfigError),
        (NackCode.NUM_EXAMPLES, DataError),
        (NackCode.INCOMPATIBLE, AggregatorError),
    ],
)
def test_a_terminal_refusal_ends_the_run_with_the_error_that_fits(fake_aggregator, device, code, error):
    def refuse(message):
        return Nack(code=code, reason="because") if isinstance(message, Ready) else None

    driver = device(fake_aggregator(intercept=refuse)).run()
    assert driver.phase is Phase.FAILED
    assert type(driver.error) is error
    assert "because" in str(driver.error)


@pytest.mark.parametrize("code", [NackCode.STALE, NackCode.CONFLICT, NackCode.UNKNOWN, NackCode.SHAPE, NackCode.NORM])
def test_a_refused_update_is_dropped_told_to_the_app_and_work_is_asked_for_again(fake_aggregator, device, code):
    refused = []

    def refuse(message):
        if isinstance(message, Offer) and not refused:
            refused.append(message)
            return Nack(code=code, reason="no", ref=message.upload)
        return None

    one = device(fake_aggregator(intercept=refuse))
    driver = one.run()
    assert driver.phase is Phase.FINISHED
    assert [settled.accepted for settled in one.settled] == [False, True]
    assert code in one.settled[0].reason
    assert one.home.outbox.entries() == []


@pytest.mark.parametrize(("code", "kept"), [(NackCode.REVOKED, 1), (NackCode.NUM_EXAMPLES, 0)])
def test_a_terminal_refusal_keeps_a_result_that_may_be_wanted_once_it_is_mended(fake_aggregator, device, code, kept):
    def refuse(message):
        return Nack(code=code, reason="no", ref=message.upload) if isinstance(message, Offer) else None

    one = device(fake_aggregator(intercept=refuse))
    assert one.run().phase is Phase.FAILED
    assert len(one.home.outbox.entries()) == kept


def test_retry_later_keeps_the_update_and_comes_back_no_sooner_than_told(fake_aggregator, device):
    offers = []

    def busy(message):
        if isinstance(message, Offer):
            offers.append(one.now)
            if len(offers) == 1:
                return Nack(code=NackCode.RETRY_LATER, reason="full", ref=message.upload, retry_after_ms=30_000)
        return None

    one = device(fake_aggregator(intercept=busy))
    one.run()
    assert len(offers) == 2
    assert 30.0 <= offers[1] - offers[0] <= 45.0
    assert one.trainer.rounds == [1]


def test_wait_is_obeyed_within_its_window(fake_aggregator, device):
    asked = []

    def later(message):
        if isinstance(message, Ready):
            asked.append(one.now)
            if len(asked) <= 5:
                return Wait(after_ms=10_000, window_ms=5_000, reason="no round is open")
        return None

    one = device(fake_aggregator(intercept=later))
    one.run()
    gaps = [after - before for before, after in itertools.pairwise(asked)]
    assert all(10.0 <= gap <= 15.0 for gap in gaps[:5])
    assert len(set(gaps[:5])) == 5


def test_an_aggregator_that_never_greets_is_tried_again_with_back_off(fake_aggregator, device):
    aggregator = fake_aggregator(intercept=lambda message: [])
    one = device(aggregator)
    for _ in range(200):
        one.step()
    hellos = kinds_of(aggregator).count("HELLO")
    assert set(kinds_of(aggregator)) == {"HELLO"}
    assert hellos >= 5
    assert one.now / hellos > 10.0


def test_a_transfer_without_progress_is_given_up_and_taken_up_again(fake_aggregator, device):
    stalled = []

    def stall(message):
        if isinstance(message, Chunk) and not stalled:
            stalled.append(one.now)
        return [] if stalled and one.now < stalled[0] + 60 and isinstance(message, Chunk) else None

    one = device(fake_aggregator(intercept=stall))
    driver = one.run()
    assert driver.phase is Phase.FINISHED
    assert 90.0 <= one.now < 100.0
    assert one.trainer.rounds == [1]


def test_a_link_that_fell_silent_while_nothing_is_asked_is_replaced(fake_aggregator, device):
    def mute(message):
        if isinstance(message, Ready):
            return Wait(after_ms=10_000_000, window_ms=0, reason="no round is open")
        return [] if isinstance(message, Ping) else None

    aggregator = fake_aggregator(intercept=mute)
    one = device(aggregator)
    one.run(until=lambda: kinds_of(aggregator).count("HELLO") == 2)
    assert 90.0 <= one.now < 100.0


def test_the_readme_names_every_state_and_every_refusal_with_an_answer_of_its_own():
    readme = (Path(edge_client.__file__).parent / "README.md").read_text(encoding="utf-8")
    own = [code for code in NackCode if code.terminal] + [NackCode.STALE, NackCode.CONFLICT, NackCode.RETRY_LATER]
    assert [word for word in (*Phase, *own) if f"`{word}`" not in readme] == []


def test_a_queued_upload_pings_and_waits_longer_than_the_stall_timeout(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=1)

    def queue(message):
        if isinstance(message, Offer):
            aggregator.answer_offer = message
            return Credit(upload=message.upload, have=0, upto=0)
        return None

    aggregator.intercept = queue
    one = device(aggregator)
    one.run(until=lambda: one.now > 200.0)
    kinds = kinds_of(aggregator)
    assert kinds.count("OFFER") == 1
    assert kinds.count("PING") >= 9


@pytest.mark.parametrize(
    ("error", "quoted"),
    [(DataError("notes.jsonl, line 3: secret"), False), (ValueError("secret"), False), (ConfigError("secret"), True)],
)
def test_a_failing_trainer_declines_and_the_app_gets_its_error(fake_aggregator, device, error, quoted):
    class Broken(NumpyTrainer):
        def run(self, *args, **kwargs):
            raise error

    aggregator = fake_aggregator()
    driver = device(aggregator, Broken(seed=1)).run()
    assert driver.phase is Phase.FAILED
    assert driver.error is error
    (declined,) = aggregator.declined
    assert type(error).__name__ in declined.reason
    assert ("secret" in declined.reason) is quoted


def test_a_decline_that_nobody_answers_does_not_hold_the_error_back(fake_aggregator, device):
    class Broken(NumpyTrainer):
        def run(self, *args, **kwargs):
            raise DataError("no")

    aggregator = fake_aggregator(intercept=lambda message: [] if isinstance(message, Decline) else None)
    one = device(aggregator, Broken(seed=1))
    assert isinstance(one.run().error, DataError)
    assert one.now <= 15.0


def test_a_hand_out_that_does_not_hash_to_its_name_is_refused_for_good_after_some_tries(fake_aggregator, device):
    aggregator = fake_aggregator()
    aggregator.objects[aggregator.handout.digest] = bytes(aggregator.handout.object_bytes)
    one = device(aggregator)
    driver = one.run()
    assert isinstance(driver.error, AggregatorError)
    assert one.trainer.rounds == []


def test_garbage_from_the_aggregator_never_shows_as_anything_but_its_error(fake_aggregator, device):
    def garbage(message):
        return Data(digest="0" * 64, offset=0, payload=b"x") if isinstance(message, Ready) else None

    def lie(message):
        return Credit(upload=message.upload, have=0, upto=1 << 33) if isinstance(message, Offer) else None

    assert isinstance(device(fake_aggregator(intercept=lie)).run().error, AggregatorError)
    one = device(fake_aggregator(intercept=garbage))
    one.run(until=lambda: one.now > 500.0)
    assert one.driver.error is None


def test_another_run_at_the_tickets_address_is_a_ticket_error(fake_aggregator, device):
    def other(message):
        if message.type != "HELLO":
            return None
        return Welcome(version=2, run="other", epoch="e", manifest="0" * 64, manifest_bytes=1, chunk_max=1 << 20)

    assert isinstance(device(fake_aggregator(intercept=other)).run().error, TicketError)


def test_a_refused_key_is_an_error_at_once_unless_it_has_just_been_enrolled(fake_aggregator, device):
    assert isinstance(device(fake_aggregator(refuse_key=1)).run().error, NotEnrolledError)
    one = device(fake_aggregator(refuse_key=2))
    one.restart(authentication_retries=3)
    assert one.run().phase is Phase.FINISHED


def test_pause_asks_for_no_work_and_resume_does(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=1)
    one = device(aggregator)
    one.driver.feed(Pause())
    one.run(until=lambda: one.now > 300.0)
    assert one.driver.phase is Phase.PAUSED
    assert not any(isinstance(message, Ready) for message in aggregator.heard)
    assert any(isinstance(message, Ping) for message in aggregator.heard)
    one.driver.feed(Resume())
    assert one.run().phase is Phase.FINISHED


def test_stop_says_goodbye_and_a_new_start_goes_on(fake_aggregator, device):
    aggregator = fake_aggregator(rounds=2)
    one = device(aggregator)
    one.run(until=lambda: len(aggregator.durable) == 1)
    one.driver.feed(Stop())
    assert one.driver.phase is Phase.STOPPED
    assert aggregator.heard[-1].type == "BYE"
    one.restart()
    assert one.run().phase is Phase.FINISHED
    assert one.trainer.rounds == [1, 2]


def test_a_device_that_cannot_take_part_never_asks_for_work(fake_aggregator, device):
    class Broken(NumpyTrainer):
        def info(self, manifest):
            raise BaseModelError("another base model")

    aggregator = fake_aggregator()
    driver = device(aggregator, Broken(seed=1)).run()
    assert isinstance(driver.error, BaseModelError)
    assert not any(isinstance(message, Ready) for message in aggregator.heard)
