"""Real processes killed at seeded moments, and devices that bring what they must not."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aggregator.store.home import Home
from benchmarks.simulation.manifests import toy_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    path.write_bytes(toy_manifest(rank_max=4).to_json())
    return path


def test_a_daemon_and_devices_killed_again_and_again_lose_nothing_and_count_nothing_twice(
    serve: Callable[..., Any], join: Callable[..., Any], manifest: Path
) -> None:
    daemon = serve(manifest, cohort_size=2, rounds=4, default_rank=2)
    tickets = [daemon.invite(number) for number in range(2)]
    devices = [join(ticket, number, numpy={"seed": number + 1}) for number, ticket in enumerate(tickets)]
    for victim in (daemon, devices[0], daemon, devices[1], daemon):
        _wait_for_a_device(daemon)
        victim.kill()
        victim.start()
    assert {device.result()["version"] for device in devices} == {4}
    assert daemon.stop() == 0
    with closing(sqlite3.connect(Home(daemon.home).journal)) as journal:
        merged = journal.execute(
            "SELECT round, count(*), count(DISTINCT client) FROM upload WHERE state = 'merged' GROUP BY round"
        )
        assert merged.fetchall() == [(number, 2, 2) for number in range(1, 5)]


def _wait_for_a_device(daemon: Any) -> None:
    """Until some device has said something since the daemon started, or the run is over."""
    for _ in range(100):
        status = daemon.status()
        if status["phase"] == "finished" or any(device["bytes_in"] for device in status["devices"]):
            return
    raise AssertionError("no device came")


def test_bad_input_is_told_to_the_party_who_can_act_and_the_others_go_on(
    serve: Callable[..., Any], join: Callable[..., Any], manifest: Path, tmp_path: Path
) -> None:
    daemon = serve(manifest, cohort_size=1, rounds=1, default_rank=2)
    tickets = [daemon.invite(number) for number in range(6)]
    foreign = tmp_path / "foreign.ticket"
    foreign.write_text(re.sub(r'"run": "[^"]*"', '"run": "elsewhere"', tickets[1].read_text()))
    devices = {
        "fingerprint": join(tickets[0], 0, numpy={"seed": 1, "fingerprint": "f" * 64}),
        "elsewhere": join(foreign, 1, numpy={"seed": 1}),
        "rank 99 is not in 1..4": join(tickets[2], 2, numpy={"seed": 1, "rank": 99}),
        "num_examples": join(tickets[3], 3, numpy={"seed": 1, "num_examples": 10**12}),
    }
    for words, device in devices.items():
        assert words in device.error()
    assert "used by another device" in join(tickets[0], 4, numpy={"seed": 1}).error()
    assert daemon.status()["round"] == 1
    assert join(tickets[5], 5, numpy={"seed": 1}).result()["version"] == 1
