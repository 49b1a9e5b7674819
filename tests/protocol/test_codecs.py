"""Codecs: error bounds, row independence, saturation, and nothing non-finite in either direction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protocol.codecs import Codec, decode_rows, encode_rows, row_bytes
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError

MAX = float(np.finfo(np.float32).max)
GROUPS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@st.composite
def matrices(draw: st.DrawFn, bound: float = MAX) -> tuple[np.ndarray, list[int]]:
    bound = float(np.float32(bound))
    groups = draw(GROUPS)
    values = st.floats(-bound, bound, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 1.2e-38, bound, -bound])
    return draw(hnp.arrays(np.float32, (draw(st.integers(0, 5)), sum(groups)), elements=values)), groups


def round_trip(rows: np.ndarray, codec: Codec, groups: list[int]) -> np.ndarray:
    return decode_rows(encode_rows(rows, codec, groups), codec, groups).astype(np.float64)


@given(matrices())
def test_fp32_is_exact(case: tuple[np.ndarray, list[int]]) -> None:
    rows, groups = case
    assert round_trip(rows, Codec.FP32, groups).astype(np.float32).tobytes() == rows.tobytes()


@given(matrices(65504.0))
def test_fp16_rounds_as_numpy_does(case: tuple[np.ndarray, list[int]]) -> None:
    rows, groups = case
    assert np.array_equal(round_trip(rows, Codec.FP16, groups), rows.astype(np.float16).astype(np.float64))


@given(matrices(3.38e38))
def test_bf16_is_within_half_a_unit_in_the_last_place(case: tuple[np.ndarray, list[int]]) -> None:
    rows, groups = case
    error = np.abs(round_trip(rows, Codec.BF16, groups) - rows)
    assert (error <= np.maximum(np.abs(rows.astype(np.float64)) * 2.0**-8, 2.0**-134)).all()


def test_bf16_rounds_ties_to_even() -> None:
    ties = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)]], np.float32)
    assert round_trip(ties, Codec.BF16, [3]).tolist() == [[1.0, 1 + 2**-6, -1.0]]


def test_bf16_saturates_instead_of_overflowing() -> None:
    largest = np.uint32(0x7F7F0000).view(np.float32)
    got = round_trip(np.array([[MAX, -MAX]], np.float32), Codec.BF16, [2])
    assert got.tolist() == [[float(largest), -float(largest)]]


@settings(max_examples=150)
@given(matrices(3.3e38))
def test_int8_is_within_half_a_step_of_its_group(case: tuple[np.ndarray, list[int]]) -> None:
    rows, groups = case
    got, start = round_trip(rows, Codec.INT8, groups), 0
    for width in groups:
        part = rows[:, start : start + width].astype(np.float64)
        peak = np.abs(part).max(axis=1, keepdims=True)
        # A scale of 126 ulps or more is precise to 0.4 %; below, denormal float32 steps of 2**-149 are the floor.
        assert (np.abs(got[:, start : start + width] - part) <= peak / 254 * 1.001 + 127 * 2.0**-149).all()
        start += width


@given(matrices())
def test_int8_of_any_finite_row_decodes_finite_and_keeps_signs(case: tuple[np.ndarray, list[int]]) -> None:
    rows, groups = case
    got = round_trip(rows, Codec.INT8, groups)
    assert (got * rows.astype(np.float64) >= 0).all()
    assert (np.abs(got) <= MAX).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, MAX])
def test_int8_of_a_constant_row_at_the_edges_of_float32(value: float) -> None:
    got = round_trip(np.full((1, 3), value, np.float32), Codec.INT8, [3])
    assert got == pytest.approx(np.full((1, 3), value), rel=0.031, abs=127 * 2.0**-149)


def test_int8_scales_a_group_by_itself() -> None:
    got = round_trip(np.array([[1e30, 1.0]], np.float32), Codec.INT8, [1, 1])
    assert got[0, 1] == pytest.approx(1.0)


@given(matrices(65504.0), st.sampled_from(Codec))
def test_a_rows_bytes_depend_on_that_row_alone(case: tuple[np.ndarray, list[int]], codec: Codec) -> None:
    rows, groups = case
    whole = encode_rows(rows, codec, groups)
    assert whole.shape == (len(rows), row_bytes(codec, groups))
    for index in range(len(rows)):
        assert encode_rows(rows[index : index + 1], codec, groups).tobytes() == whole[index].tobytes()


@given(matrices(65504.0), st.sampled_from([Codec.FP32, Codec.FP16, Codec.BF16]))
def test_encoding_what_was_decoded_gives_the_same_bytes(case: tuple[np.ndarray, list[int]], codec: Codec) -> None:
    rows, groups = case
    once = encode_rows(rows, codec, groups)
    assert encode_rows(decode_rows(once, codec, groups), codec, groups).tobytes() == once.tobytes()


@given(st.sampled_from(Codec), GROUPS, st.integers(0, 3), st.data())
def test_arbitrary_bytes_decode_to_finite_values_or_are_refused(
    codec: Codec, groups: list[int], count: int, data: st.DataObject
) -> None:
    width = row_bytes(codec, groups)
    raw = data.draw(st.binary(min_size=count * width, max_size=count * width))
    try:
        rows = decode_rows(np.frombuffer(raw, np.uint8).reshape(count, width), codec, groups)
    except RemoteProtocolError as error:
        assert error.code is NackCode.NON_FINITE
    else:
        assert rows.shape == (count, sum(groups))
        assert rows.dtype == np.float32
        assert np.isfinite(rows).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", Codec)
def test_a_non_finite_value_is_not_encoded(codec: Codec, value: float) -> None:
    with pytest.raises(LocalProtocolError, match="NaN or infinite"):
        encode_rows(np.array([[1.0, value]], np.float32), codec, [2])


@pytest.mark.parametrize(
    ("codec", "raw"),
    [
        (Codec.FP32, b"\x00\x00\x80\x7f"),
        (Codec.FP32, b"\x00\x00\xc0\xff"),
        (Codec.FP16, b"\x00\x7c"),
        (Codec.FP16, b"\x01\xfe"),
        (Codec.BF16, b"\x80\x7f"),
        (Codec.BF16, b"\xc0\xff"),
        (Codec.INT8, b"\x00\x00\x80\x7f\x01"),
        (Codec.INT8, b"\x00\x00\x80\x7f\x00"),
        (Codec.INT8, b"\xff\xff\x7f\x7f\x02"),
    ],
)
def test_a_non_finite_value_is_not_decoded(codec: Codec, raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_rows(np.frombuffer(raw, np.uint8)[None], codec, [1])
    assert caught.value.code is NackCode.NON_FINITE


def test_fp16_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(LocalProtocolError, match="65504"):
        encode_rows(np.array([[65505.0]], np.float32), Codec.FP16, [1])
