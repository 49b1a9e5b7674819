from pathlib import Path

import pytest

from benchmarks.command_line import UsageError
from benchmarks.faults.settings import PRESETS, read_settings

FLAGS: dict[str, str | None] = {"preset": "quick", "seed": "3", "out": None, "plot": None, "home": None}


def test_flags_become_settings(tmp_path: Path) -> None:
    settings = read_settings(**FLAGS | {"out": str(tmp_path / "o.json"), "home": str(tmp_path / "new")})  # type: ignore[arg-type]
    assert settings.seeds == (3, 4, 5)
    assert settings.out == tmp_path / "o.json"
    assert settings.home == tmp_path / "new"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_kills_each_side_a_hundred_times_and_more(preset) -> None:  # type: ignore[no-untyped-def]
    assert preset.runs * preset.kills >= 100


def test_a_home_is_a_new_or_empty_folder_and_told_with_the_other_faults() -> None:
    with pytest.raises(UsageError, match=r"(?s)--preset.*--home: expected a new or empty folder"):
        read_settings(**FLAGS | {"preset": "x", "home": "."})  # type: ignore[arg-type]
