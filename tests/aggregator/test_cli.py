import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator.cli import main
from aggregator.commands import COMMANDS
from aggregator.settings import SETTINGS
from aggregator.store.home import Endpoints, Home
from protocol.manifest import Manifest
from protocol.ticket import Ticket

KEY = "TvZ:Z4fBtGZBL{s5]c0]HrH]0YxfW8HFz5@4Ub#t"
"""A key with a character at which fire, left alone, cuts a text."""


@pytest.fixture
def manifest_file(tmp_path: Path, manifest: Manifest) -> Path:
    (tmp_path / "m.json").write_bytes(manifest.to_json())
    return tmp_path / "m.json"


@pytest.fixture
def home(tmp_path: Path, manifest_file: Path, capsys: pytest.CaptureFixture[str]) -> str:
    path = str(tmp_path / "home")
    assert main(["init", path, "--manifest", str(manifest_file), "--default_rank", "2"]) == 0
    capsys.readouterr()
    return path


def said(capsys: pytest.CaptureFixture[str]) -> dict:
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ronds", "3"],
        ["--rounds", "2.5"],
        ["--rounds"],
        ["--rounds", "3", "extra"],
        ["--rounds", "3", "run"],
        ["--rounds", "3", "__class__"],
        ["--update_codec", "fp8"],
        ["--json=maybe"],
    ],
)
def test_a_mistyped_flag_exits_2_before_anything_is_made(
    tmp_path: Path, manifest_file: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    assert main(["init", str(home), "--manifest", str(manifest_file), *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert not home.exists()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_refuses_a_flag_it_does_not_have(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--no-such-flag=1"]) == 2
    assert f"tributary-aggregator {name}" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr()
    assert "Print JSON." in shown.out + shown.err


def test_init_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--help"]) == 0
    shown = capsys.readouterr()
    told = " ".join((shown.out + shown.err).split())
    assert [name for name, setting in SETTINGS.items() if setting.help not in told] == []


def test_settings_that_have_no_meaning_together_are_refused_by_init(
    tmp_path: Path, manifest_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    flags = ["--default_rank=2", "--strategy=hlora", "--retention=0.5", "--server_optimizer=adam"]
    assert main(["init", str(home), f"--manifest={manifest_file}", *flags]) == 3
    told = capsys.readouterr().err
    assert "retention 0.5 with strategy hlora" in told
    assert "server_optimizer adam with strategy hlora" in told
    assert not home.exists()


def test_an_unknown_command_exits_2_and_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serv"]) == 2
    assert "unknown command 'serv'" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_mistakes_reach_the_shell(tmp_path: Path, manifest_file: Path) -> None:
    command = [sys.executable, "-m", "aggregator.cli", "init", str(tmp_path / "home"), f"--manifest={manifest_file}"]
    found = subprocess.run([*command, "--ronds=3"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert "--ronds" in found.stderr
    assert not (tmp_path / "home").exists()
    assert subprocess.run([*command, "--default_rank=2"], capture_output=True, check=False).returncode == 0
    assert (tmp_path / "home" / "run.json").exists()


def test_init_takes_every_setting(tmp_path: Path, manifest_file: Path) -> None:
    home = tmp_path / "home"
    flags = ["--run=a-run", "--strict_enrolment", "--rounds=4", "--default_rank=2", "--learning_rate=3e-4"]
    assert main(["init", str(home), "--manifest", str(manifest_file), *flags]) == 0
    config = Home(home).config()
    assert (config.run, config.strict_enrolment, config.rounds, config.local.learning_rate) == ("a-run", True, 4, 3e-4)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["init", "HOME", "--manifest", "/nowhere/m.json"], 3),
        (["init", "HOME", "--manifest", "MANIFEST", "--default_rank=99"], 3),
        (["init", "TAKEN", "--manifest", "MANIFEST", "--default_rank=2"], 4),
        (["init", "HOME", "--manifest", "MANIFEST", "--default_rank=2", "--from_adapter", "/nowhere"], 1),
        (["status", "HOME"], 4),
        (["serve", "HOME"], 4),
        (["serve", "TAKEN", "--endpoint", "tcp://*:7700"], 3),
        (["serve", "TAKEN", "--endpoint", "localhost"], 3),
        (["serve", "TAKEN", "--log_level", "loud"], 2),
        (["invite", "TAKEN"], 4),
        (["enroll", "TAKEN", "not-a-key"], 3),
        (["revoke", "TAKEN", "nobody"], 3),
        (["extend", "TAKEN", "two"], 2),
        (["extend", "TAKEN", "0"], 3),
        (["stop", "TAKEN"], 4),
        (["export", "TAKEN", "--rank=2"], 2),
        (["export", "TAKEN", "--rank=2", "--out", "OUT", "--version=9"], 3),
        (["export", "TAKEN", "--rank=0", "--out", "OUT"], 1),
        (["export", "TAKEN", "--rank=0", "--out", "OUT", "--format=peft"], 1),
        (["export", "TAKEN", "--out", "OUT", "--format=zip"], 2),
        (["merge", "--out", "OUT"], 2),
        (["merge", "/nowhere", "--out", "OUT"], 1),
        (["merge", "/nowhere", "--out", "OUT", "--weights=heavy"], 2),
    ],
)
def test_exit_codes_are_as_documented(
    tmp_path: Path, home: str, manifest_file: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"HOME": str(tmp_path / "new"), "TAKEN": home, "MANIFEST": str(manifest_file), "OUT": str(tmp_path / "out")}
    assert main([paths.get(argument, argument) for argument in arguments] + ["--json"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert set(json.loads(shown.err)) == {"error", "message"}
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "out").exists()


def test_texts_arrive_as_they_were_typed(home: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enroll", "--json", home, KEY, "--name", "1e5"]) == 0
    assert said(capsys)["name"] == "1e5"
    assert main(["enroll", home, f"--key={KEY}", "--name=a#b", "--json"]) == 0
    assert said(capsys)["name"] == "a#b"
    assert main(["status", home, "--json"]) == 0
    assert [device["name"] for device in said(capsys)["devices"]] == ["a#b"]


def test_a_device_is_revoked_by_name(home: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["enroll", home, KEY, "--name=phone"])
    assert main(["revoke", home, "phone"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("revoked ")


def test_a_ticket_is_for_its_owners_eyes(home: str, tmp_path: Path) -> None:
    Home(Path(home)).set_endpoints(Endpoints(data="tcp://10.0.0.5:7700", enrolment="tcp://10.0.0.5:7701"))
    ticket = tmp_path / "t.ticket"
    assert main(["invite", home, "--out", str(ticket), "--expires=1h"]) == 0
    assert Ticket.from_json(ticket.read_bytes()).run == "home"
    assert stat.S_IMODE(ticket.stat().st_mode) == 0o600


def test_tickets_do_not_overwrite_each_other(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Home(Path(home)).set_endpoints(Endpoints(data="tcp://10.0.0.5:7700", enrolment="tcp://10.0.0.5:7701"))
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(2):
        assert main(["invite", home, "--json"]) == 0
        names.append(said(capsys)["ticket"])
    assert names == ["home-1.ticket", "home-2.ticket"]


def test_status_speaks_to_people_and_programs(home: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", home]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "run home: round 1 of 10, stopped, version 0"
    assert main(["status", home, "--json"]) == 0
    assert said(capsys)["phase"] == "stopped"


def test_an_export_can_be_merged_and_started_from(
    home: str, tmp_path: Path, manifest_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = json.loads(manifest_file.read_bytes())
    bare["dense"] = []
    manifest_file.write_bytes(json.dumps(bare).encode())
    run, adapter, merged = (str(tmp_path / name) for name in ("run", "adapter", "merged"))
    start = ["init", run, "--manifest", str(manifest_file), "--default_rank=2"]
    assert main(start) == 0
    assert main(["export", run, "--rank=2", "--out", adapter]) == 0
    assert main(["export", run, "--rank=2", "--out", adapter]) == 1
    assert main(["export", run, "--rank=2", "--out", adapter, "--overwrite"]) == 0
    assert main(["merge", adapter, adapter, "-o", merged, "--weights=3,1", "--rank=2"]) == 0
    again = ["init", str(tmp_path / "again"), *start[2:], "--from_adapter", merged]
    assert main(again) == 0
    capsys.readouterr()


def test_a_run_that_peft_cannot_hold_is_exported_and_started_from(
    home: str, tmp_path: Path, manifest_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "exported")
    assert main(["export", home, "--out", out, "--json"]) == 0
    assert said(capsys) == {"out": out, "version": 0, "rank": 4, "format": "tributary"}
    again = ["init", str(tmp_path / "again"), "--manifest", str(manifest_file), "--default_rank=2"]
    assert main([*again, "--from_adapter", out]) == 0
    assert main(["export", home, "--out", str(tmp_path / "peft"), "--format=peft"]) == 1
    assert "a PEFT folder holds values, not offsets: export in the format 'tributary'" in capsys.readouterr().err
    assert not (tmp_path / "peft").exists()
