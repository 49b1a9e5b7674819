"""Where a run stood, read back: the round in memory and the one recovered from its journal are the same."""

import pytest

from aggregator.rounds.machine import MemberState, Phase
from aggregator.rounds.recovery import recovered_round
from protocol import messages


def states(state):
    return {key: (member.state, member.round, member.reason) for key, member in state.members.items()}


def test_a_run_that_never_opened_a_round_gathers(world):
    world.device("a").ready()
    found = recovered_round(world.journal, 5.0)
    assert (found.number, found.version, found.phase, found.members) == (1, 0, Phase.GATHERING, {})


def test_an_open_round_comes_back_with_what_became_of_everybody(new_world):
    world = new_world(cohort_size=4)
    first, second, third, fourth = given = world.assigned("abcd")
    first.deliver(given[first], first.update(given[first]))
    second.say(messages.Decline(token=given[second].token, reason="busy"))
    third.deliver(given[third], b"\xff" * len(third.update(given[third])))
    found = recovered_round(world.journal, world.now)
    assert states(found) == states(world.federation.round)
    assert found.members[fourth.key].state is MemberState.ASSIGNED
    assert (found.number, found.phase) == (1, Phase.OPEN)


def test_a_revoked_device_is_not_waited_for(world):
    first, _ = world.assigned()
    world.journal.enrol_client(first.key, "a", 0.0)
    world.journal.revoke_client(first.key)
    assert recovered_round(world.journal, 0.0).members[first.key].state is MemberState.DECLINED


def test_the_age_of_a_round_is_what_was_journalled(world):
    world.assigned()
    world.journal.round_elapsed(1, 42.0)
    assert recovered_round(world.journal, 1e6).armed_at == 1e6 - 42.0


@pytest.mark.parametrize("merged", [False, True])
def test_a_closed_round_is_merged_and_a_committed_one_followed_by_the_next(world, merged):
    world.merge.held = not merged
    for device, given in world.assigned().items():
        device.deliver(given, device.update(given))
    world.poll()
    found = recovered_round(world.journal, 0.0)
    assert (found.number, found.version) == ((2, 1) if merged else (1, 0))
    assert found.phase is (Phase.GATHERING if merged else Phase.MERGING)
    assert len(found.submitted) == (0 if merged else 2)
