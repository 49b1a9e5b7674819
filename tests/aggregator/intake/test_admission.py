"""What a device says of itself, and what the aggregator answers if it does not fit the run."""

from dataclasses import replace

import pytest

from protocol import messages
from protocol.errors import NackCode
from protocol.header import encode
from protocol.limits import NUM_EXAMPLES_MAX
from protocol.manifest import Quantization


@pytest.mark.parametrize(
    ("changes", "code", "hint"),
    [
        ({"run": "other"}, NackCode.WRONG_RUN, "'run'"),
        ({"manifest": "1" * 64}, NackCode.WRONG_MANIFEST, "fetch it again"),
        ({"fingerprint": "1" * 64}, NackCode.WRONG_BASE, "'toy'"),
        ({"quantization": Quantization.INT8}, NackCode.WRONG_BASE, "nf4, bf16"),
        ({"rank": 5}, NackCode.RANK, "1..4"),
        ({"rank": 4096}, NackCode.RANK, "1..4"),
        ({"num_examples": 0}, NackCode.NUM_EXAMPLES, "1..10000000"),
        ({"num_examples": NUM_EXAMPLES_MAX}, NackCode.NUM_EXAMPLES, "1..10000000"),
    ],
)
def test_a_device_that_does_not_fit_is_told_why_and_takes_no_place(world, changes, code, hint):
    before = world.federation.round
    answer = world.device("a").ready(**changes)
    assert isinstance(answer, messages.Nack)
    assert answer.code is code
    assert hint in answer.reason
    assert world.federation.round == before
    assert world.journal.rounds() == []


def test_a_rank_of_zero_is_no_rank(world):
    device = world.device("a")
    frames = messages.Ready(
        run="run",
        manifest=world.manifest.digest,
        fingerprint="f" * 64,
        quantization=Quantization.NF4,
        rank=1,
        residual=False,
        num_examples=1,
    )
    header = bytes(encode(frames)[0]).replace(b"\xa4rank\x01", b"\xa4rank\x00")
    (answer,) = device.raw(header)
    assert (answer.type, answer.code) == ("NACK", NackCode.MALFORMED)
    assert "rank" in answer.reason


def test_a_device_that_names_no_rank_gets_the_default(world):
    first, second = world.device("a"), world.device("b")
    first.ready()
    assert second.task(rank=None).rank == 2
    assert first.task(rank=4).rank == 4


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"size": 1}, NackCode.SHAPE),
        ({"size": 10**9}, NackCode.SHAPE),
        ({"num_examples": 0}, NackCode.NUM_EXAMPLES),
        ({"num_examples": NUM_EXAMPLES_MAX}, NackCode.NUM_EXAMPLES),
    ],
)
def test_an_offer_that_cannot_fit_is_refused_before_a_byte_travels_and_the_round_does_not_wait(world, changes, code):
    first, second = world.device("a"), world.device("b")
    first.ready()
    given = second.task()
    answer = second.offer(given, second.update(given), **changes)
    assert (answer.type, answer.code) == ("NACK", code)
    assert world.federation.round.members[second.key].state == "rejected"
    assert world.journal.assignment(given.token).state == "rejected"
    assert world.journal.uploads(1) == []
    assert list((world.folder / "store/partial").iterdir()) == []


def test_an_update_at_another_rank_than_assigned_has_the_wrong_size(world):
    first, second = world.device("a"), world.device("b")
    first.ready()
    given = second.task(rank=2)
    answer = second.offer(given, second.update(replace(given, rank=3)))
    assert (answer.type, answer.code) == ("NACK", NackCode.SHAPE)
    assert "rank 2" in answer.reason
