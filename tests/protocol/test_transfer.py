"""Transfers end with the exact bytes, whatever is lost, repeated or reordered, and never hold more than the credit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.transfer import Download, Piece, Receiver, Sender

SIZES = st.integers(1, 30)
CHUNKS = st.integers(1, 9)


class Wire:
    """Carries items in any order, losing and repeating some, as the drawn data says."""

    def __init__(self, data: st.DataObject, *, faulty: bool) -> None:
        self._data, self._faulty = data, faulty
        self._items: list[Piece] = []

    def put(self, item: Piece) -> None:
        self._items.append(item)

    def take(self) -> Piece | None:
        if not self._items:
            return None
        index = self._data.draw(st.integers(0, len(self._items) - 1))
        fate = self._data.draw(st.sampled_from(["deliver", "repeat", "lose"])) if self._faulty else "deliver"
        item = self._items[index] if fate == "repeat" else self._items.pop(index)
        return None if fate == "lose" else item

    def __bool__(self) -> bool:
        return bool(self._items)


@settings(max_examples=60)
@given(SIZES, CHUNKS, st.integers(1, 20), st.data())
def test_an_upload_ends_with_the_exact_bytes(size: int, chunk: int, window: int, data: st.DataObject) -> None:
    source, held = bytes(range(size)), bytearray()
    receiver, sender = Receiver(size, window_bytes=window), Sender(size, chunk)
    for attempt in range(60):  # a reordered window still brings its first piece, so each attempt gets further
        chunks, credits = Wire(data, faulty=attempt < 3), Wire(data, faulty=attempt < 3)
        if attempt:
            receiver = Receiver(size, have=len(held), window_bytes=window)  # the aggregator restarted, too
        sender.resume(receiver.have, receiver.upto)
        while True:
            while piece := sender.next_piece():
                assert 1 <= piece.length <= chunk
                chunks.put(piece)
            if not chunks and not credits:
                break
            if arrived := chunks.take():
                if receiver.accept(arrived.offset, arrived.length):
                    held += source[arrived.offset : arrived.offset + arrived.length]
                assert len(held) == receiver.have <= receiver.upto <= min(size, receiver.have + window)
                credits.put(Piece(receiver.have, receiver.upto))
            if credit := credits.take():
                sender.credit(credit.offset, credit.length)
                assert sender.acknowledged <= receiver.have
        if receiver.complete:
            break
    assert held == source


@settings(max_examples=60)
@given(SIZES, CHUNKS, st.integers(1, 5), st.data())
def test_a_download_ends_with_the_exact_bytes(size: int, chunk: int, window: int, data: st.DataObject) -> None:
    source, file = bytes(range(1, size + 1)), bytearray(size)
    have = 0
    for attempt in range(20):
        download = Download(size, have, chunk, window)
        wire, in_flight = Wire(data, faulty=attempt < 3), set()
        while True:
            while piece := download.next_request():
                assert 1 <= piece.length <= chunk
                in_flight.add(piece.offset)
                assert len(in_flight) <= window
                wire.put(piece)
            if not wire:
                break
            if arrived := wire.take():
                fresh = download.accept(arrived.offset, arrived.length)
                assert fresh == (arrived.offset in in_flight)
                in_flight.discard(arrived.offset)
                if fresh:
                    file[arrived.offset : arrived.offset + arrived.length] = source[
                        arrived.offset : arrived.offset + arrived.length
                    ]
            assert file[: download.have] == source[: download.have]
        have = download.have
        if download.complete:
            break
    assert file == source


@given(SIZES, st.integers(0, 80), st.integers(-2, 80), st.integers(1, 20))
def test_a_receiver_takes_no_byte_beyond_its_credit(size: int, offset: int, length: int, window: int) -> None:
    receiver = Receiver(size, window_bytes=window)
    limit = receiver.upto
    if length < 1 or offset + length > limit:
        with pytest.raises(RemoteProtocolError, match="credit"):
            receiver.accept(offset, length)
        assert receiver.have == 0
    else:
        assert receiver.accept(offset, length) == (offset == 0)


@given(SIZES, st.integers(0, 99), st.integers(0, 99))
def test_a_credit_that_makes_no_sense_is_refused(size: int, have: int, upto: int) -> None:
    for give in (Sender(size).resume, Sender(size).credit):
        if have <= upto <= size:
            give(have, upto)
        else:
            with pytest.raises(RemoteProtocolError, match="credit"):
                give(have, upto)


def test_old_credits_change_nothing() -> None:
    sender = Sender(100, 10)
    sender.resume(0, 40)
    pieces = [sender.next_piece() for _ in range(4)]
    sender.credit(20, 60)
    sender.credit(10, 50)
    sender.credit(20, 60)
    assert [p and p.offset for p in pieces] == [0, 10, 20, 30]
    assert [sender.next_piece(), sender.next_piece(), sender.next_piece()] == [Piece(40, 10), Piece(50, 10), None]
    assert sender.acknowledged == 20


def test_pieces_grow_though_credit_comes_in_small_steps() -> None:
    size = 400
    receiver, sender = Receiver(size, window_bytes=80), Sender(size, 10)
    sender.resume(receiver.have, receiver.upto)
    lengths = []
    pieces = [piece for _ in range(8) if (piece := sender.next_piece())]
    sender.chunk_bytes = 20
    while pieces:
        piece = pieces.pop(0)
        lengths.append(piece.length)
        receiver.accept(piece.offset, piece.length)
        sender.credit(receiver.have, receiver.upto)
        while following := sender.next_piece():
            pieces.append(following)
    assert receiver.complete
    assert lengths == [10] * 8 + [20] * 16


def test_bytes_that_arrived_after_all_are_not_sent_again() -> None:
    sender = Sender(100, 10)
    sender.resume(0, 40)
    sender.credit(30, 70)
    assert sender.next_piece() == Piece(30, 10)


def test_a_piece_of_another_length_than_asked_for_is_refused() -> None:
    download = Download(100, chunk_bytes=10)
    download.next_request()
    with pytest.raises(RemoteProtocolError, match="asked for 10 bytes at 0, got 9"):
        download.accept(0, 9)


def test_a_piece_nobody_asked_for_is_dropped() -> None:
    assert Download(100).accept(50, 10) is False


def test_nothing_is_complete_before_it_is_and_an_empty_rest_is() -> None:
    assert not Receiver(1).complete
    assert Receiver(5, have=5).complete
    assert Download(5, have=5).complete
    assert Download(5, have=5).next_request() is None


@pytest.mark.parametrize(("size", "chunk"), [(0, 1), (1, 0), (-1, 1)])
def test_an_upload_without_bytes_is_this_sides_bug(size: int, chunk: int) -> None:
    with pytest.raises(LocalProtocolError, match="at least 1"):
        Sender(size, chunk)
