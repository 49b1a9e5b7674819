"""The command line in processes of its own: fire swallows mistakes unless it is watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge_client
from edge_client.cli import Commands, main
from protocol.manifest import Manifest


def run(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_client.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=_environment(), check=False)


def _environment() -> dict[str, str]:
    root = str(Path(edge_client.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "XDG_DATA_HOME": str(Path(root) / "nowhere"), "PAGER": "cat"}


def test_keygen_writes_a_key_and_prints_the_public_half(tmp_path):
    done = run("keygen", "a.key", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    kept = json.loads((tmp_path / "a.key").read_text())
    assert printed["public_key"] == kept["public"]
    assert kept["secret"] not in done.stdout


@pytest.mark.parametrize("arguments", [("keygen", "a.key", "--jsn"), ("keygn", "a.key")])
def test_a_mistyped_flag_or_command_exits_2_before_anything_is_done(tmp_path, arguments):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert ({"--jsn", "keygn"} & set(arguments)).pop() in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extra", ["--force=1", "b.key", "action"])
def test_what_no_command_takes_stops_it_before_anything_is_done(tmp_path, monkeypatch, capsys, extra):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["keygen", "a.key", extra])
    assert exit_.value.code == 2
    assert extra in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_members_name_behind_a_command_is_a_usage_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["keygen", "a.key", "__class__"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_help_is_no_error_and_names_the_arguments(monkeypatch, capsys):
    monkeypatch.setenv("PAGER", "cat")
    with pytest.raises(SystemExit) as exit_:
        main(["join", "--help"])
    assert exit_.value.code == 0
    assert "lora_alpha" in "".join(capsys.readouterr())


def test_no_command_at_all_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["keygen", "--out="], 2, ["out"]),
        (["manifest", "m", "sorting", "o.json", "--max-length=2.5", "--json=maybe"], 2, ["task", "max_length", "json"]),
        (["join", "no.ticket", "m", "d.jsonl"], 3, ["no.ticket"]),
        (["join", "no.ticket", "m", "d.jsonl", "--rank=2.5", "--quantization=nf5"], 2, ["rank", "nf5", "no.ticket"]),
        (["merge-export", "no-export", "m", "out"], 2, ["no-export is not an exported run"]),
        (["merge-export", "no-export", "--model=", "--out="], 2, ["model", "out"]),
        (["leave"], 2, ["state-dir"]),
        (["leave", "--state-dir=nowhere"], 2, ["nothing to leave"]),
    ],
)
def test_each_fault_has_its_exit_code_and_all_of_them_are_named(capsys, monkeypatch, tmp_path, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    message = capsys.readouterr().err
    assert all(word in message for word in words)
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_json_where_json_is_asked_for(capsys):
    assert main(["join", "no.ticket", "m", "d.jsonl", "--json"]) == 3
    printed = json.loads(capsys.readouterr().out)
    assert (printed["error"], printed["exit_code"]) == ("TicketError", 3)


def test_leave_removes_the_state_but_not_updates_that_are_not_delivered(capsys, tmp_path, device, fake_aggregator):
    one = device(fake_aggregator())
    one.run(until=lambda: bool(one.trainer.rounds))
    one.home.key()
    (one.folder / "run.json").write_text('{"run":"r","server_key":"k","enrolled":true}')
    one.home.close()
    one.home = None
    assert main(["leave", f"--state-dir={one.folder}"]) == 2
    assert "not delivered" in capsys.readouterr().err
    assert main(["leave", f"--state-dir={one.folder}", "--force"]) == 0
    assert not one.folder.exists()


@pytest.mark.parametrize("method", ["full", "bitfit"])
def test_manifest_describes_a_run_of_the_method_named(tiny_bert, tmp_path, method):
    out = tmp_path / "m.json"
    assert main(["manifest", str(tiny_bert), "classification", str(out), "--labels=no,yes", f"--method={method}"]) == 0
    assert Manifest.from_json(out.read_bytes()).method == method


def test_a_method_that_the_model_cannot_take_exits_2_and_says_why(tiny_llama, tmp_path, capsys):
    assert main(["manifest", str(tiny_llama), "causal-lm", str(tmp_path / "m.json"), "--method=bitfit"]) == 2
    assert "LlamaForCausalLM has no biases" in capsys.readouterr().err


def test_help_and_documentation_name_every_method():
    from edge_client.methods import METHODS

    for text in (Commands.manifest.__doc__, edge_client.EdgeClient.__doc__):
        assert {name for name in METHODS if name not in text} == set()
