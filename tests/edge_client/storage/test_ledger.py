"""What the privacy ledger promises, with the process killed at each step that reaches the disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from edge_client.errors import ConfigError
from edge_client.storage.ledger import Charge, Ledger

FIRST = Charge(sampling_rate=0.1, noise_multiplier=1.0, steps=10)
SECOND = Charge(sampling_rate=0.1, noise_multiplier=2.0, steps=5)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_device_without_private_training_has_no_ledger(tmp_path):
    assert Ledger(tmp_path / "privacy.json").charges == ()
    assert not list(tmp_path.iterdir())


def test_what_was_added_is_there_after_a_restart_and_like_steps_are_one_entry(tmp_path):
    ledger = Ledger(tmp_path / "privacy.json")
    for charge in (FIRST, SECOND, FIRST):
        ledger.add(charge, 1e-5)
    found = Ledger(tmp_path / "privacy.json")
    assert found.charges == ledger.charges
    assert [charge.steps for charge in found.charges] == [5, 20]
    assert found.delta == 1e-5


def test_a_kill_at_any_step_on_the_disk_leaves_the_ledger_as_it_was_or_as_it_shall_be(tmp_path, monkeypatch):
    path = tmp_path / "privacy.json"
    real, steps = {(os, "fsync"): os.fsync, (Path, "replace"): Path.replace}, []

    def arm(limit):
        def stepping(call):
            def step(*args):
                if len(steps) == limit:
                    raise Killed
                steps.append(call)
                return call(*args)

            return step

        steps.clear()
        for (owner, name), call in real.items():
            monkeypatch.setattr(owner, name, stepping(call))

    found = []
    for limit in range(4):
        path.unlink(missing_ok=True)
        arm(None)
        Ledger(path).add(FIRST, 1e-5)
        arm(limit)
        with contextlib.suppress(Killed):
            Ledger(path).add(SECOND, 1e-5)
        found.append(len(Ledger(path).charges))
    assert found == [1, 1, 2, 2]  # fsync of the file, rename, fsync of the folder, nothing left to kill


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[", '{"format": "tributary-ledger/2", "delta": 0.1, "charges": []}',
     '{"format": "tributary-ledger/1", "delta": 0.1, "charges": [{"sampling_rate": 2}]}'],
)  # fmt: skip
def test_a_ledger_that_cannot_be_read_is_not_an_empty_one(tmp_path, text):
    (tmp_path / "privacy.json").write_text(text)
    with pytest.raises(ConfigError, match="nobody knows"):
        Ledger(tmp_path / "privacy.json")
