"""Runs whose modules are stacks of factors: versions are stored as the rows that were added, with the same values."""

import random
from dataclasses import replace

import pytest

from aggregator.merge.cost import Form, fits_factors
from aggregator.rounds.work import merge_cohort
from aggregator.store.retention import live_objects
from aggregator.store.states import linked_objects
from protocol.manifest import LowRankModule
from tests.aggregator.crashing_run import play, recomputed, stored, survived, uncut
from tests.aggregator.world import World

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # as in test_crash_points


@pytest.fixture
def growing(monkeypatch, manifest):
    """Modules that are stacks while these are smaller than the matrix, as those of large models are."""

    def form(shape, width, slots):
        return Form.FACTORS if fits_factors(shape, width) else Form.MATRIX

    for user in ("module", "module_state"):
        monkeypatch.setattr(f"aggregator.merge.{user}.choose_form", form)
    large = LowRankModule(name="large", out_features=160, in_features=120)
    return replace(manifest, low_rank=(*manifest.low_rank, large))


def links(world: World) -> tuple[str, ...]:
    return linked_objects(world.objects, world.federation.version.state)


def test_a_run_leads_to_the_same_state_however_its_versions_are_stored(new_world, growing, monkeypatch):
    grown = new_world(manifest=growing, rounds=7)
    grown.play(rounds=7, size=0.3)
    monkeypatch.setattr("aggregator.store.states.LINKS_MAX", 0)
    whole = new_world(manifest=growing, rounds=7)
    whole.play(rounds=7, size=0.3)
    assert grown.state().to_bytes() == whole.state().to_bytes()
    assert [grown.journal.reports(number) for number in range(1, 8)] == [
        whole.journal.reports(number) for number in range(1, 8)
    ]


@pytest.mark.parametrize("keep_versions", [0, 2, None])
def test_what_live_versions_are_made_of_is_kept_and_nothing_else(new_world, growing, keep_versions):
    world = new_world(manifest=growing, rounds=6, keep_versions=keep_versions)
    world.play(rounds=4, size=0.3)
    assert len(links(world)) == 4
    assert stored(world.folder) == live_objects(world.journal, world.objects, keep_versions)
    before = world.state().to_bytes()
    world.restart()
    assert stored(world.folder) == live_objects(world.journal, world.objects, keep_versions)
    assert world.state().to_bytes() == before
    world.play(rounds=2, size=0.3)
    assert world.federation.finished


def test_every_kept_version_is_merged_again_to_the_same_objects(new_world, growing):
    world = new_world(manifest=growing, rounds=5, keep_versions=None)
    world.play(rounds=5, size=0.3)
    before = stored(world.folder)
    assert [merge_cohort(job)[0].state for job in world.merge.jobs] == [
        row.state_digest for row in world.journal.versions()[1:]
    ]
    assert stored(world.folder) == before


def test_a_damaged_link_keeps_the_run_from_starting(new_world, growing):
    world = new_world(manifest=growing, rounds=5)
    world.play(rounds=3, size=0.3)
    world.objects.path(links(world)[0]).write_bytes(b"something else")
    with pytest.raises(Exception, match="is damaged"):
        world.restart()


SETTINGS = {"rounds": 4, "keep_versions": 1}


def survives(folder, manifest, at: int, expected: tuple) -> None:
    """Plays a run that is killed before a step, and checks its end."""
    with survived(folder, manifest, SETTINGS, [at], expected, play) as world:
        assert recomputed(world, SETTINGS["rounds"]) == world.federation.version.state


def kill_points(folder, manifest) -> tuple[list[int], tuple]:
    """The steps by which versions are stored, committed and collected, of a run that nobody touches; and its end."""
    steps, expected = uncut(folder, manifest, SETTINGS, play)
    return [at for at, name in enumerate(steps) if name.endswith((" object", "commit_round"))], expected


def test_a_run_killed_while_a_version_is_stored_ends_as_if_it_had_not_been(folders, growing):
    at, expected = kill_points(folders(), growing)
    for number in random.Random(0).sample(at, 2):
        survives(folders(), growing, number, expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_killed_at_any_step_of_storing_a_version_ends_as_if_it_had_not_been(folders, growing):
    at, expected = kill_points(folders(), growing)
    for number in at:
        survives(folders(), growing, number, expected)
