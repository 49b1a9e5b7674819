"""Objects on their way to the device's disk."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_client.storage.objects import Objects

DATA = bytes(range(256)) * 8
DIGEST = hashlib.sha256(DATA).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


@pytest.fixture
def objects(tmp_path):
    return Objects(tmp_path)


@given(cuts=st.lists(st.integers(1, len(DATA) - 1), max_size=5, unique=True), order=st.randoms(use_true_random=False))
def test_pieces_in_any_order_make_the_object(tmp_path_factory, cuts, order):
    objects = Objects(tmp_path_factory.mktemp("objects"))
    bounds = [0, *sorted(cuts), len(DATA)]
    pieces = list(itertools.pairwise(bounds))
    order.shuffle(pieces)
    assert objects.open(DIGEST, len(DATA), {DIGEST}) == 0
    for start, end in pieces:
        objects.write(DIGEST, start, DATA[start:end])
    assert objects.seal(DIGEST)
    assert objects.read(DIGEST) == DATA
    assert objects.open(DIGEST, len(DATA), {DIGEST}) == len(DATA)


def test_a_part_is_gone_on_with_after_a_restart(objects, tmp_path):
    objects.open(DIGEST, len(DATA), {DIGEST})
    objects.write(DIGEST, 0, DATA[:100])
    assert Objects(tmp_path).open(DIGEST, len(DATA), {DIGEST}) == 100


def test_wrong_bytes_are_deleted_and_fetched_from_the_start(objects):
    objects.open(DIGEST, len(DATA), {DIGEST})
    objects.write(DIGEST, 0, bytes(len(DATA)))
    assert not objects.seal(DIGEST)
    assert objects.open(DIGEST, len(DATA), {DIGEST}) == 0


def test_a_part_longer_than_the_object_is_not_trusted(objects):
    objects.open(DIGEST, len(DATA), {DIGEST})
    objects.write(DIGEST, 0, DATA + b"!")
    assert objects.open(DIGEST, len(DATA), {DIGEST}) == 0


def test_what_is_not_kept_is_deleted(objects, tmp_path):
    for digest, data in ((DIGEST, DATA), (OTHER, b"other")):
        objects.open(digest, len(data), {DIGEST, OTHER})
        objects.write(digest, 0, data)
        assert objects.seal(digest)
    objects.open(OTHER, 5, {OTHER})
    assert [path.stem for path in tmp_path.iterdir()] == [OTHER]
