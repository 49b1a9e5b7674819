"""A kill at every step of an asynchronous run: it ends as the run that nobody touched, each update once, none redone.

Who is when done decides what a buffer holds, so the devices follow a script: each delivers into the buffer that the
script names, whatever happened before, and the run has one outcome.
"""

from pathlib import Path

import pytest

from aggregator.config import Mode
from aggregator.rounds.machine import Phase
from tests.aggregator.crash_points import CrashPoints
from tests.aggregator.crashing_run import (
    TURNS_MAX,
    Diary,
    PatientDevice,
    RecordedWorld,
    delivered,
    merged,
    opened,
    recomputed,
    survived,
    survives_each,
    uncut,
)

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # as in test_crash_points.py

SCRIPT = {"a": [(1, 1), (2, 2), (4, 4)], "b": [(1, 1), (2, 3), (4, 4)], "c": [(1, 2)], "late": [(1, 3)]}
"""The round that each device is asked in, and the round that it delivers into; `bad` sends garbage, `busy` declines."""
SETTINGS = {"mode": Mode.ASYNC, "cohort_size": 2, "over_selection": 1.0, "staleness_max": 2, "keep_versions": 1}
SHORT, LONG = {**SETTINGS, "rounds": 2}, {**SETTINGS, "rounds": 4}


class ScriptedDevice(PatientDevice):
    """A device that asks in the rounds that the script names, and delivers into those it names."""

    def turn(self) -> None:
        buffer, given = self.world.federation.round, self.outbox()
        if given is None:
            done = len(self.diary.entries(self.name)) // 2
            rounds = [asked for asked, _ in SCRIPT.get(self.name, [(1, 1)])][done:]
            if self.world.federation.finished or buffer.number in rounds[:1]:
                self.ask()
        elif given.round > self.world.config.rounds or self.may_deliver(given.round):
            self.send(given)

    def may_deliver(self, given: int) -> bool:
        """Whether its turn has come, and nobody who is to be asked by now would be left out by it."""
        buffer = self.world.federation.round
        target = dict(SCRIPT.get(self.name, [(1, 1)]))[given]
        asked = all(
            any(entry.round == number for _, entry in self.diary.entries(name))
            for name, rounds in SCRIPT.items()
            for number, _ in rounds
            if number <= buffer.number
        )
        return (asked and buffer.filling == target) or buffer.filling > target


def play(world: RecordedWorld) -> None:
    """Lets everybody go on until all hold the final version; a merge takes until everybody had a turn."""
    devices = [ScriptedDevice(world, name, Diary(world.folder / "diary")) for name in (*SCRIPT, "bad", "busy")]
    world.merge.held = True
    for _ in range(TURNS_MAX):
        for device in devices:
            device.turn()
        world.merge.step()
        world.poll(after_s=3.0)
        if all(device.finished for device in devices):
            return
    raise AssertionError(f"the run does not end: {world.federation.round}")


def expected_updates(rounds: int) -> set[tuple[str, int, int]]:
    """Device, the round it was asked in, and the round it counts in."""
    return {
        (name, asked, counts) for name, both in SCRIPT.items() for asked, counts in both if max(asked, counts) <= rounds
    }


def survives(folder: Path, manifest, settings, kills: tuple[int, ...], expected: tuple) -> None:
    """Plays a run that is killed before these steps, and checks its end."""
    with survived(folder, manifest, settings, kills, expected, play) as world:
        rounds, journal = world.config.rounds, world.journal
        counted = [(row.client.rstrip("_"), journal.assignment(row.token).round, row.round) for row in merged(world)]
        assert sorted(counted) == sorted(expected_updates(rounds))
        assert delivered(folder) == {(name, asked) for name, asked, _ in expected_updates(rounds)}
        assert recomputed(world, rounds) == world.federation.version.state


def test_a_run_that_nobody_touches_ends_as_its_journalled_buffers_have_it(folders, manifest):
    settings = {**LONG, "keep_versions": None}
    uncut(folder := folders(), manifest, settings, play)
    with opened(folder, manifest, CrashPoints(), life=1, **settings) as world:
        assert world.federation.round.phase is Phase.OPEN
        again = [recomputed(world, number) for number in range(1, 5)]
        assert again == [row.state_digest for row in world.journal.versions()[1:]]
        assert {world.journal.assignment(row.token).version for row in merged(world) if row.round == 3} == {0, 1}


def test_a_buffer_killed_at_any_step_ends_as_if_it_had_not_been(folders, manifest):
    steps, expected = uncut(folders(), manifest, SHORT, play)
    kills = [(at,) for at in range(2, len(steps), 5)]
    survives_each(lambda each: survives(folders(), manifest, SHORT, each, expected), kills, steps)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_an_asynchronous_run_killed_at_any_step_ends_as_if_it_had_not_been(folders, manifest, part):
    steps, expected = uncut(folders(), manifest, LONG, play)
    kills = [(at,) for at in range(part, len(steps), 16)]
    kills += [(at, (7 * at) % 50) for (at,) in kills]
    survives_each(lambda each: survives(folders(), manifest, LONG, each, expected), kills, steps)
