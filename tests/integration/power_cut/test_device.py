"""A device whose power is cut has what it said is stored: results, its key, and that the key is enrolled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np
import pytest

from edge_client.storage.home import Home
from edge_client.trainer import LocalResult
from protocol.assignment import Assignment, AssignmentKind, Handout
from protocol.codecs import Codec
from protocol.ticket import Ticket

RESULT = LocalResult(update=None, num_examples=5, metrics={"loss": 0.5})
TICKET = Ticket(run="run", endpoint="tcp://a:1", enrolment_endpoint="tcp://a:2", server_key="0" * 40, token=None)


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def assignment(number: int) -> Assignment:
    handout = Handout(digest="0" * 64, object_bytes=1, codec=Codec.FP32, slots=2)
    return Assignment(
        kind=AssignmentKind.TRAIN, run="run", round=number, version=0, token=f"{number:032x}", rank=2, handout=handout
    )


@pytest.fixture
def lost_by_a_cut(disk: Any) -> Callable[[int], set[tuple[str, bytes]]]:
    """``lost_by_a_cut(seed)``: results that the outbox had taken before the cut, and does not hold, whole, after it."""

    def live(seed: int) -> set[tuple[str, bytes]]:
        rng = np.random.default_rng(seed)
        stored: list[tuple[str, bytes]] = []
        stored_with_power: list[tuple[str, bytes]] = []
        least = int(rng.integers(1, 20))

        def cut() -> None:
            stored_with_power.extend(stored)
            disk.cut()

        power = threading.Timer(float(rng.choice([0.0, 0.01]) * rng.random()), cut)
        with Home(disk.path / "device") as home, suppress(OSError):
            for number in count(1):
                update = rng.bytes(int(rng.integers(1, 100_000)))
                home.outbox.put(assignment(number), RESULT, update)
                stored.append((assignment(number).token, update))
                if number == least:
                    power.start()
        power.join()
        disk.restore()
        assert len(stored_with_power) >= least
        with Home(disk.path / "device") as home:
            return set(stored_with_power) - {
                (item.assignment.token, bytes(item.data)) for item in home.outbox.entries()
            }

    return live


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 100))])
def test_a_trained_update_that_was_stored_is_there_after_a_power_cut(
    lost_by_a_cut: Callable[[int], set[tuple[str, bytes]]], seed: int
) -> None:
    assert lost_by_a_cut(seed) == set()


@pytest.mark.usefixtures("no_fsync")
def test_an_outbox_that_does_not_flush_is_found_out(lost_by_a_cut: Callable[[int], set[tuple[str, bytes]]]) -> None:
    assert lost_by_a_cut(0)


def forgotten_by_a_cut(disk: Any) -> list[str]:
    """What a device that has just been enrolled does not know any more."""
    with Home(disk.path / "device") as home:
        key, enrolled = home.key(), home.bind(TICKET)
        assert not enrolled
        home.enrolled(TICKET)
    disk.cut()
    disk.restore()
    with Home(disk.path / "device") as home:
        kept = {"key": home.key() == key, "enrolment": home.bind(TICKET)}
    return [what for what, known in kept.items() if not known]


def test_a_device_is_still_itself_and_enrolled_after_a_power_cut(disk: Any) -> None:
    assert forgotten_by_a_cut(disk) == []


@pytest.mark.usefixtures("no_fsync")
def test_a_device_that_does_not_flush_is_found_out(disk: Any) -> None:
    assert forgotten_by_a_cut(disk) == ["key", "enrolment"]
