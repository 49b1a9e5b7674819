"""The round machine: invariants under any order of events, then the stories that operators know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.config import RunConfig
from aggregator.rounds.machine import Answer, MemberState, Phase, Round, Wait
from aggregator.rounds.selection import choose

CLIENTS = tuple("abcdef")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "submit", "decline", "reject", "tick"]), st.sampled_from(CLIENTS), st.floats(0, 40)
    ),
    max_size=60,
)
CONFIGS = st.builds(
    lambda cohort, extra, quorum, deadline: RunConfig(
        run="r", cohort_size=cohort, over_selection=extra, quorum=min(quorum, cohort), deadline_s=deadline, poll_s=1.0
    ),
    st.integers(1, 4),
    st.sampled_from([1.0, 1.3, 2.0]),
    st.integers(1, 4),
    st.sampled_from([None, 10.0, 100.0]),
)


def apply(state: Round, config: RunConfig, event: tuple[str, str, float], now: float) -> Round:
    kind, client, _ = event
    member = state.members.get(client)
    if kind == "ask":
        return state.asked(config, client, now)[0]
    if kind == "tick":
        return state.ticked(config, now)
    if member is None or member.state not in (MemberState.ASSIGNED, MemberState.LATE):
        return state
    moves = {
        "submit": lambda: state.submitted_by(client, now),
        "decline": lambda: state.declined_by(client, "busy", now),
        "reject": lambda: state.rejected(client, "nan", now),
    }
    return moves[kind]()


@given(CONFIGS, EVENTS)
def test_no_order_of_events_loses_a_submission_or_overfills_a_round(config: RunConfig, events: list) -> None:
    state, now = Round(number=1, version=0), 0.0
    for event in events:
        now += event[2]
        after = apply(state, config, event, now)
        holders = after.in_state(MemberState.INVITED, MemberState.ASSIGNED)
        assert set(state.submitted) <= set(after.submitted)
        assert len(holders) <= config.invitations
        assert (after.armed_at is None) == (after.phase is Phase.GATHERING)
        if after.complete(config, now):
            assert len(after.submitted) >= config.least_updates
        state = after


@given(CONFIGS, EVENTS)
def test_the_round_wakes_up_no_later_than_when_ticking_changes_it(config: RunConfig, events: list) -> None:
    state, now = Round(number=1, version=0), 0.0
    for event in events:
        now += event[2]
        state = apply(state, config, event, now)
    wakeup = state.next_event(config)
    horizon = now + 1000 if wakeup is None else wakeup - 1e-6
    if horizon > now and not state.complete(config, horizon):
        assert state.ticked(config, horizon) == state.ticked(config, now)


def opened(config: RunConfig, *clients: str, now: float = 0.0) -> Round:
    """A round in which these clients have their assignments."""
    state = Round(number=1, version=0)
    for client in (*clients, *clients):
        state, _ = state.asked(config, client, now)
    return state


def test_a_round_opens_when_the_cohort_is_present_and_not_before() -> None:
    config = RunConfig(run="r", cohort_size=2)
    first, answer = Round(number=1, version=0).asked(config, "a", 0.0)
    assert isinstance(answer, Wait)
    assert "1 of 2" in answer.reason
    second, answer = first.asked(config, "b", 0.1)
    assert answer is Answer.ASSIGN
    assert second.phase is Phase.OPEN


def test_a_client_that_left_is_not_counted_as_present() -> None:
    config = RunConfig(run="r", cohort_size=2, poll_s=1.0)
    first, _ = Round(number=1, version=0).asked(config, "a", 0.0)
    second, answer = first.asked(config, "b", 11.0)
    assert isinstance(answer, Wait)
    assert second.phase is Phase.GATHERING


def test_a_client_that_asks_twice_gets_the_assignment_it_has() -> None:
    config = RunConfig(run="r", cohort_size=2)
    _, answer = opened(config, "a", "b").asked(config, "a", 1.0)
    assert answer is Answer.RESUME


def test_a_full_round_lets_others_wait_and_a_refusal_makes_room_for_one() -> None:
    config = RunConfig(run="r", cohort_size=2)
    state = opened(config, "a", "b")
    assert isinstance(state.asked(config, "c", 1.0)[1], Wait)
    state = state.declined_by("a", "out of memory", 2.0)
    state, answer = state.asked(config, "c", 3.0)
    assert answer is Answer.ASSIGN
    again = state.asked(config, "a", 4.0)[1]
    assert isinstance(again, Wait)
    assert "out of memory" in again.reason


def test_an_invitation_that_nobody_takes_up_lapses() -> None:
    config = RunConfig(run="r", cohort_size=2)
    state = Round(number=1, version=0).asked(config, "a", 0.0)[0].asked(config, "b", 0.0)[0]
    assert isinstance(state.asked(config, "c", 1.0)[1], Wait)
    assert state.ticked(config, 31.0).asked(config, "c", 31.0)[1] is Answer.ASSIGN


def test_a_tick_that_changes_nothing_costs_nothing() -> None:
    config = RunConfig(run="r", rounds=1, cohort_size=2, poll_s=1.0, deadline_s=60.0)
    state = opened(config, "a", "b")
    assert state.ticked(config, 59.0) is state
    assert state.ticked(config, 60.0) is not state, "the deadline passed without a quorum"


def test_the_deadline_closes_a_round_with_a_quorum_and_only_then() -> None:
    config = RunConfig(run="r", cohort_size=3, quorum=2, deadline_s=60.0)
    state = opened(config, "a", "b", "c").submitted_by("a", 5.0).submitted_by("b", 6.0)
    assert not state.complete(config, 59.0)
    assert state.complete(config, 60.0)


def test_a_deadline_without_a_quorum_keeps_what_came_and_lets_others_in() -> None:
    config = RunConfig(run="r", cohort_size=2, quorum=2, deadline_s=60.0)
    state = opened(config, "a", "b").submitted_by("a", 5.0).ticked(config, 61.0)
    assert state.submitted == ("a",)
    assert state.members["b"].state is MemberState.LATE
    assert state.asked(config, "c", 62.0)[1] is Answer.ASSIGN
    assert state.submitted_by("b", 63.0).complete(config, 63.0)


def test_over_selection_invites_more_than_it_waits_for() -> None:
    config = RunConfig(run="r", cohort_size=3, over_selection=1.3)
    state = opened(config, "a", "b", "c", "d")
    assert len(state.in_state(MemberState.ASSIGNED)) == 4
    for client in "abc":
        state = state.submitted_by(client, 1.0)
    assert state.complete(config, 1.0)


def test_nobody_is_given_work_while_a_round_is_merged() -> None:
    config = RunConfig(run="r", cohort_size=1)
    state = opened(config, "a").submitted_by("a", 1.0).closed()
    after, answer = state.asked(config, "a", 2.0)
    assert isinstance(answer, Wait)
    assert after.waiting["a"] == 2.0


@pytest.mark.parametrize("count", [0, 1, 3, 6, 9])
def test_selection_is_a_sample_without_replacement_that_ignores_order(count: int) -> None:
    chosen = choose(CLIENTS, count, seed=7, round_number=3)
    assert chosen == choose(CLIENTS[::-1], count, seed=7, round_number=3)
    assert len(set(chosen)) == min(count, len(CLIENTS))


def test_selection_is_uniform_over_rounds() -> None:
    drawn = [c for n in range(600) for c in choose(CLIENTS, 2, seed=1, round_number=n)]
    assert all(160 <= drawn.count(client) <= 240 for client in CLIENTS)
