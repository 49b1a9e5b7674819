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


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("preset", "qiuck", "--preset: expected one of quick, full, paper, got 'qiuck'"),
        ("seed", "2.5", "--seed: expected a whole number"),
        ("seed", True, "--seed: expected a whole number"),
        ("out", True, "--out: expected text, got nothing"),
        ("out", "no/such/folder/o.json", "--out: there is no folder"),
        ("plot", "no/such/folder/o.png", "--plot: there is no folder"),
        ("home", ".", "--home: expected a new or empty folder"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(flag: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_settings(**FLAGS | {flag: value})  # type: ignore[arg-type]


def test_all_faults_are_told_together() -> None:
    with pytest.raises(UsageError, match=r"(?s)--preset.*--seed"):
        read_settings(**FLAGS | {"preset": "x", "seed": "y"})  # type: ignore[arg-type]
