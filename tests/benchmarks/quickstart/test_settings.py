from pathlib import Path

import pytest

from benchmarks.command_line import UsageError
from benchmarks.quickstart.settings import DEVICES, PRESETS, read_settings
from protocol.manifest import Quantization

FLAGS: dict[str, str | None] = {
    "preset": "quick",
    "seed": "3",
    "quantization": "nf4",
    "out": None,
    "query": None,
    "data": None,
    "model": None,
    "home": None,
}


def test_flags_become_settings(tmp_path: Path) -> None:
    settings = read_settings(**FLAGS | {"preset": "full", "out": str(tmp_path / "o.json")})  # type: ignore[arg-type]
    assert settings.seeds == (3, 4, 5)
    assert settings.preset is PRESETS["full"]
    assert settings.out == tmp_path / "o.json"
    assert settings.quantization is Quantization.NF4


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("quantization", "nf5", "--quantization: expected one of nf4"),
        ("query", True, "--query: expected text, got nothing"),
        ("data", "", "--data: expected text, got nothing"),
        ("home", ".", "--home: expected a new or empty folder"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(flag: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_settings(**FLAGS | {flag: value})  # type: ignore[arg-type]


def test_all_faults_are_told_together() -> None:
    with pytest.raises(UsageError, match=r"(?s)--preset.*--quantization.*--home"):
        read_settings(**FLAGS | {"preset": "x", "quantization": "y", "home": "."})  # type: ignore[arg-type]


def test_devices_differ_in_rank_and_alpha_and_one_is_rank_stabilised() -> None:
    assert [device.rank for device in DEVICES] == [2, 4, 8, 16]
    assert len({device.lora_alpha / device.rank for device in DEVICES}) == 4
    assert sum(device.use_rslora for device in DEVICES) == 1
