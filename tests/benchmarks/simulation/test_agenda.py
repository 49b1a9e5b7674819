"""Whose turn it is, against a list that is searched through."""

import random

import pytest

from benchmarks.simulation.agenda import Agenda


@pytest.mark.parametrize("seed", range(20))
def test_turns_are_those_of_all_who_are_called_or_due_in_order(seed: int) -> None:
    rng, agenda = random.Random(seed), Agenda()
    called: set[int] = set()
    planned: dict[int, float] = {}
    now = 0.0
    for _ in range(200):
        device, at = rng.randrange(6), now + rng.randrange(4)
        match rng.randrange(4):
            case 0:
                agenda.call(device)
                called.add(device)
            case 1:
                agenda.plan(device, at)
                planned[device] = at
            case 2:
                agenda.plan(device, None)
                planned.pop(device, None)
            case _:
                due = {device for device, time in planned.items() if time <= now}
                assert list(agenda.turns(now)) == sorted(called | due)
                called.clear()
                planned = {device: time for device, time in planned.items() if device not in due}
                now += 1
        assert agenda.idle == (not called)
        assert agenda.next_event() == min(planned.values(), default=None)


def test_who_is_called_in_a_pass_has_its_turn_in_it_only_behind_the_one_at_work() -> None:
    agenda = Agenda()
    agenda.call(5)
    passes: list[list[int]] = [[], []]
    for turns in passes:
        for device in agenda.turns(0.0):
            turns.append(device)
            if device == 5:
                agenda.call(3)
                agenda.call(8)
    assert passes == [[5, 8], [3]]
