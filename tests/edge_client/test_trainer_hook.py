"""``federate`` and the built-in trainer, as far as they can be seen without torch."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from edge_client import ConfigError, EdgeClient, federate
from edge_client.trainers.numpy_trainer import NumpyTrainer


def module(name: str, **members: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


def test_federate_runs_a_client_around_the_users_trainer(loopback, tmp_path, monkeypatch):
    seen = []

    def adapter(trainer, **options):
        seen.append((trainer, options))
        return NumpyTrainer(seed=1, rank=options["rank"])

    monkeypatch.setitem(sys.modules, "edge_client.trainers.hf_trainer", module("hf", HFTrainerAdapter=adapter))
    server, mine = loopback(rounds=2), SimpleNamespace()
    summary = federate(mine, server.ticket(), rank=2, base="folder", state_dir=tmp_path / "s")
    assert seen == [(mine, {"base": "folder", "rank": 2, "residual": False})]
    assert (summary.finished, summary.accepted) == (True, 2)


def test_model_and_data_make_the_built_in_trainer_with_every_setting(loopback, tmp_path, monkeypatch):
    seen = []

    class Built(NumpyTrainer):
        model = "the model"

        def __init__(self, **options):
            super().__init__(seed=1)
            seen.append(options)

    monkeypatch.setitem(sys.modules, "edge_client.trainers.torch_trainer", module("tt", TorchTrainer=Built))
    client = EdgeClient(loopback().ticket(), model="m", data=[{}], rank=4, lora_alpha=8, state_dir=tmp_path / "s")
    with pytest.raises(Exception, match="no model yet"):
        _ = client.model
    client.run()
    assert client.model == "the model"
    (options,) = seen
    assert (options["model"], options["data"], options["rank"], options["lora_alpha"]) == ("m", [{}], 4, 8)


def test_federate_without_torch_says_what_to_install(loopback, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "edge_client.trainers.hf_trainer", None)
    with pytest.raises(ConfigError, match=r"tributary-fl\[client\]"):
        federate(SimpleNamespace(), loopback().ticket(), state_dir=tmp_path / "s")


def test_the_built_in_trainer_without_torch_says_what_to_install(loopback, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "edge_client.trainers.torch_trainer", None)
    client = EdgeClient(loopback().ticket(), model="m", data=[{}], state_dir=tmp_path / "s")
    with pytest.raises(ConfigError, match=r"tributary-fl\[client\]"):
        client.run()
