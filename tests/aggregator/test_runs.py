from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.config import RunConfig
from aggregator.errors import ConfigError, HomeError
from aggregator.merge import GlobalState
from aggregator.runs import create_run, current_config
from aggregator.store.journal import Journal
from aggregator.store.objects import ObjectStore
from protocol.manifest import Manifest

CONFIG = RunConfig(run="test", default_rank=2)


def test_a_new_run_has_version_0_and_its_objects(tmp_path: Path, manifest: Manifest) -> None:
    home = create_run(tmp_path / "home", CONFIG, manifest)
    with Journal(home.journal) as journal:
        versions = journal.versions()
    assert [row.version for row in versions] == [0]
    state = GlobalState.from_bytes(bytes(ObjectStore(home.objects).view(versions[0].state_digest)), manifest)
    assert state.to_bytes() == GlobalState.zeros(manifest).to_bytes()


def test_a_run_is_made_in_an_empty_folder_too(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "home").mkdir()
    assert create_run(tmp_path / "home", CONFIG, manifest).config() == CONFIG


def test_what_is_in_a_folder_is_left_alone(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(HomeError, match="not an empty folder"):
        create_run(tmp_path / "home", CONFIG, manifest)
    with pytest.raises(HomeError, match="not an empty folder"):
        create_run(tmp_path / "home" / "thesis.tex", CONFIG, manifest)
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "thesis.tex"]


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="rounds is 0"):
        create_run(tmp_path / "home", replace(CONFIG, rounds=0), manifest)
    assert list(tmp_path.iterdir()) == []


def test_rounds_that_were_added_count(tmp_path: Path, manifest: Manifest) -> None:
    home = create_run(tmp_path / "home", CONFIG, manifest)
    with Journal(home.journal) as journal:
        assert current_config(home, journal) == CONFIG
        journal.set_meta("rounds", "25")
        assert current_config(home, journal) == replace(CONFIG, rounds=25)
