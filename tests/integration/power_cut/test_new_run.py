"""A run that the operator was told is made is there, whole, after a power cut, and so is what happened to it since."""

from __future__ import annotations

import os
from typing import Any

import pytest

from aggregator.config import RunConfig
from aggregator.errors import AggregatorError
from aggregator.runs import create_run
from aggregator.store.home import Endpoints, Home
from aggregator.store.journal import Journal
from aggregator.store.objects import ObjectStore
from aggregator.store.recovery import recover_store
from benchmarks.simulation.manifests import toy_manifest

CONFIG = RunConfig(run="run", default_rank=2)
MANIFEST = toy_manifest(rank_max=2)
ENDPOINTS = Endpoints(data="tcp://127.0.0.1:7", enrolment="tcp://127.0.0.1:8")


def usable(disk: Any) -> bool:
    """Whether the home is all that it was."""
    try:
        home = Home(disk.path / "home")
        with Journal(home.journal) as journal:
            recover_store(journal, ObjectStore(home.objects))
        return (home.config(), home.manifest()) == (CONFIG, MANIFEST) and len(home.server_keys()) == 2
    except AggregatorError as error:
        print(error)
        return False


def test_a_run_is_there_as_soon_as_it_is_said_to_be(disk: Any) -> None:
    create_run(disk.path / "home", CONFIG, MANIFEST)
    disk.cut()
    disk.restore()
    assert usable(disk)


def test_a_run_that_was_not_flushed_is_found_out(disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    create_run(disk.path / "home", CONFIG, MANIFEST)
    disk.cut()
    disk.restore()
    assert not usable(disk)


def test_the_endpoints_that_tickets_name_are_remembered(disk: Any) -> None:
    create_run(disk.path / "home", CONFIG, MANIFEST).set_endpoints(ENDPOINTS)
    disk.cut()
    disk.restore()
    assert Home(disk.path / "home").endpoints() == ENDPOINTS
