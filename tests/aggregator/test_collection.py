"""What a long run leaves on disk: what is needed, and nothing else, however long it gets."""

import pytest

from aggregator.adapters.export import ExportFormat, export_version
from aggregator.adapters.exported_folder import read_exported_folder
from aggregator.adapters.exported_state import exported_from_state
from aggregator.rounds.work import merge_cohort
from aggregator.store.retention import needed_objects
from protocol import messages
from protocol.errors import NackCode


def stored(world):
    return {path.name: path.stat().st_size for path in (world.folder / "store/objects").glob("??/*")}


@pytest.mark.parametrize("keep_versions", [0, 2])
def test_a_run_of_30_rounds_takes_no_more_disk_than_one_of_5(new_world, keep_versions):
    world = new_world(rounds=30, keep_versions=keep_versions)
    world.play(rounds=5)
    files, size = len(stored(world)), sum(stored(world).values())
    world.play(rounds=25)
    assert world.federation.finished
    assert len(stored(world)) == files == 2 * (1 + keep_versions) + 2 * keep_versions
    assert sum(stored(world).values()) <= 1.1 * size


def test_all_is_kept_on_request(new_world):
    world = new_world(rounds=6, keep_versions=None)
    world.play(rounds=6)
    assert len(stored(world)) == 2 * 7 + 2 * 6


@pytest.mark.parametrize("keep_versions", [0, 1, 2])
def test_what_is_kept_is_enough_to_merge_the_last_rounds_again(new_world, keep_versions):
    world = new_world(rounds=4, keep_versions=keep_versions)
    world.play(rounds=4)
    for back in range(1, 1 + keep_versions):
        assert merge_cohort(world.merge.jobs[-back])[0].state == world.journal.versions()[-back].state_digest


def test_who_still_fetches_the_version_before_is_told_to_ask_again(new_world):
    world = new_world(cohort_size=1, keep_versions=0)
    first = world.device("a")
    given = first.task()
    first.deliver(given, first.update(given))
    answer = first.say(messages.Get(digest=given.handout.digest, offset=0, length=9))
    assert (answer.type, answer.code) == ("NACK", NackCode.UNKNOWN)
    handout = first.task().handout
    assert isinstance(first.say(messages.Get(digest=handout.digest, offset=0, length=9)), messages.Data)


def test_bytes_that_were_collected_and_come_again_are_stored_again(new_world):
    world = new_world(rounds=4, keep_versions=0)
    world.play(rounds=4, size=0.0)  # every update is the same, and every state
    assert world.federation.finished
    assert set(stored(world)) == needed_objects(world.journal, 0)
    world.restart()


def test_a_disk_that_refuses_to_collect_ends_the_run(world, monkeypatch):
    def failing(*_):
        raise OSError(5, "input/output error")

    monkeypatch.setattr("aggregator.store.objects.ObjectStore.collect", failing)
    world.play()
    with pytest.raises(OSError, match="input/output"):
        world.poll()


def test_an_update_refused_after_it_was_sealed_is_collected(new_world):
    world = new_world(over_selection=1.5, rounds=3, keep_versions=0)
    given = world.assigned("abc")
    first, second, third = given
    for device in (first, second):
        device.deliver_all(given[device], device.update(given[device]))
    world.verify.held = True
    third.deliver_all(given[third], third.update(given[third]))
    world.poll()  # the round closes without it
    world.verify.release()
    world.poll()
    assert third.inbox[-1].code is NackCode.STALE
    assert world.federation.version.version == 1
    assert set(stored(world)) == needed_objects(world.journal, 0)
    assert list((world.folder / "store/partial").iterdir()) == []


def test_an_export_of_what_is_collected_meanwhile_takes_the_version_after_it(new_world, tmp_path, monkeypatch):
    world = new_world(rounds=3, keep_versions=0)
    world.play()
    before = world.federation.version
    world.play()
    after = world.federation.version
    answers = iter([before, after])

    def owner(home, name, version):
        found = next(answers)
        return {"version": found.version, "state": found.state}

    class Home:
        objects = world.objects.root
        manifest = staticmethod(lambda: world.manifest)
        config = staticmethod(lambda: world.config)

    monkeypatch.setattr("aggregator.adapters.export.command", owner)
    assert export_version(Home(), tmp_path / "out", rank=2, format=ExportFormat.TRIBUTARY).version == 2
    expected = exported_from_state(world.state(), world.manifest, 2, seed=world.config.seed)
    assert read_exported_folder(tmp_path / "out").to_files() == expected.to_files()
