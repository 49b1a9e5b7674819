"""Payloads: one canonical safetensors layout, whose lower ranks are prefixes of its higher ones."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codecs import Codec
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError
from protocol.manifest import DenseTensor, LowRankModule, Manifest
from protocol.payload import AdapterTensors, Factor, Layout, PrefixDigests

SMALL = st.integers(1, 5)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(
    lambda name: name not in ("slots", "__metadata__")
)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    split = draw(st.integers(0, len(names)))
    return Layout(
        tuple(LowRankModule(name=n, out_features=draw(SMALL), in_features=draw(SMALL)) for n in names[:split]),
        tuple(DenseTensor(name=n, shape=tuple(draw(st.lists(SMALL, max_size=3)))) for n in names[split:]),
        tuple(draw(st.lists(st.sampled_from(Factor), max_size=1))),
    )


def filled(layout: Layout, rank: int, seed: int = 0) -> AdapterTensors:
    random = np.random.default_rng(seed)
    tensors = layout.zeros(rank if layout.low_rank else 0)
    tensors.slots[:] = random.normal(size=tensors.slots.shape)
    for value in tensors.dense.values():
        value[...] = random.normal(size=value.shape)
    return tensors


def equal(left: AdapterTensors, right: AdapterTensors) -> bool:
    dense = all(np.array_equal(left.dense[name], right.dense[name]) for name in {*left.dense, *right.dense})
    return dense and np.array_equal(left.slots, right.slots)


@given(layouts(), st.integers(0, 4), st.sampled_from(Codec))
def test_an_object_has_the_size_foretold_and_decodes_to_what_a_second_trip_keeps(
    layout: Layout, rank: int, codec: Codec
) -> None:
    tensors = filled(layout, rank)
    data = layout.encode(tensors, codec)
    assert len(data) == layout.object_bytes(rank, codec)
    once = layout.decode(data, rank, codec)
    assert {name: value.shape for name, value in once.dense.items()} == {t.name: t.shape for t in layout.dense}
    if codec is Codec.FP32:
        assert equal(once, tensors)
    if codec is not Codec.INT8:
        assert layout.encode(once, codec) == data


@given(layouts(), st.integers(0, 4), st.sampled_from([Codec.FP32, Codec.FP16]))
def test_the_safetensors_library_opens_an_object_and_finds_the_same_tensors(
    layout: Layout, rank: int, codec: Codec
) -> None:
    tensors = filled(layout, rank)
    data = layout.encode(tensors, codec)
    expected = layout.decode(data, rank, codec)
    found = safetensors.numpy.load(data)
    slots = found.pop("slots").astype(np.float32) if layout.low_rank else np.zeros((0, 0), np.float32)
    assert equal(AdapterTensors({n: v.astype(np.float32) for n, v in found.items()}, slots), expected)


@given(layouts(), st.integers(0, 4), st.sampled_from(Codec))
def test_the_safetensors_library_finds_the_dtype_of_every_codec(layout: Layout, rank: int, codec: Codec) -> None:
    entries = safetensors.deserialize(layout.encode(filled(layout, rank), codec))
    assert {entry["dtype"] for _, entry in entries} == {codec.safetensors_dtype}


@given(layouts(), st.integers(0, 4), st.integers(0, 4), st.sampled_from(Codec))
def test_the_body_of_a_lower_rank_is_a_prefix(layout: Layout, low: int, more: int, codec: Codec) -> None:
    tensors = filled(layout, low + more)
    body = layout.encode_body(tensors, codec)
    lower = AdapterTensors(tensors.dense, tensors.slots[:low])
    assert body[: layout.body_bytes(low, codec)] == layout.encode_body(lower, codec)
    assert equal(
        layout.decode_body(body[: layout.body_bytes(low, codec)], low, codec),
        layout.decode(layout.encode(lower, codec), low, codec),
    )


@given(layouts(), st.integers(0, 4), st.sampled_from(Codec))
def test_prefix_digests_are_those_of_the_objects(layout: Layout, slots: int, codec: Codec) -> None:
    tensors = filled(layout, slots)
    digests = PrefixDigests(layout, layout.encode_body(tensors, codec), slots, codec)
    for rank in [slots, 0, slots // 2, slots]:
        lower = AdapterTensors(tensors.dense, tensors.slots[:rank])
        whole = layout.header(rank, codec) + layout.encode_body(lower, codec)
        assert digests.of(rank) == hashlib.sha256(whole).hexdigest()


@given(layouts(), st.integers(0, 4), st.sampled_from(Codec))
def test_a_frozen_factor_takes_no_bytes_and_reads_as_zero(layout: Layout, rank: int, codec: Codec) -> None:
    tensors = filled(layout, rank)
    body = layout.encode_body(tensors, codec)
    decoded = layout.decode_body(body, rank, codec)
    for module in layout.low_rank:
        m, n = module.out_features, module.in_features
        one, whole = layout.decode_factors(body, rank, codec, module.name), layout.factors(decoded.slots, module.name)
        assert [part.shape for part in whole] == [(m, rank), (rank, n)]
        assert all(np.array_equal(part, other) for part, other in zip(one, whole, strict=True))
        for factor, part in zip((Factor.B, Factor.A), whole, strict=True):
            if factor in layout.frozen:
                assert not part.any()
                assert not part.flags.writeable
    factors = {Factor.B: [m.out_features for m in layout.low_rank], Factor.A: [m.in_features for m in layout.low_rank]}
    values = sum(sum(sizes) for factor, sizes in factors.items() if factor not in layout.frozen)
    assert layout.width == values


def test_a_digest_of_more_slots_than_are_stored_is_refused(manifest: Manifest) -> None:
    layout = Layout.of(manifest)
    digests = PrefixDigests(layout, layout.encode_body(filled(layout, 2), Codec.BF16), 2, Codec.BF16)
    with pytest.raises(LocalProtocolError, match="rank 3"):
        digests.of(3)


@given(st.binary(max_size=300), st.sampled_from(Codec))
def test_arbitrary_bytes_are_refused(data: bytes, codec: Codec) -> None:
    layout = Layout((LowRankModule(name="q", out_features=2, in_features=3),), (DenseTensor(name="b", shape=(2,)),))
    with pytest.raises(RemoteProtocolError):
        layout.decode(data, 1, codec)


@settings(max_examples=100)
@given(layouts(), st.integers(0, 3), st.sampled_from(Codec), st.data())
def test_a_mutated_object_is_refused_or_has_the_same_shapes(
    layout: Layout, rank: int, codec: Codec, data: st.DataObject
) -> None:
    whole = bytearray(layout.encode(filled(layout, rank), codec))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    head = len(layout.header(rank, codec))
    try:
        decoded = layout.decode(whole, rank, codec)
    except RemoteProtocolError as error:
        assert error.code is (NackCode.SHAPE if position < head else NackCode.NON_FINITE)
        assert str(error).encode()
    else:
        assert position >= head
        assert decoded.slots.shape == ((rank, layout.width) if layout.low_rank else (0, 0))
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (bytes(whole[:cut]), bytes(whole) + b"\0"):
        with pytest.raises(RemoteProtocolError):
            layout.decode(wrong, rank, codec)


def object_with(table: dict[str, object], body: bytes) -> bytes:
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def header_table(layout: Layout, rank: int) -> dict[str, dict[str, object]]:
    table: dict[str, dict[str, object]] = json.loads(layout.header(rank, Codec.BF16)[8:])
    return table


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda t: t["head.bias"].update(shape=[3]), "'head.bias'"),
        (lambda t: t["head.bias"].update(dtype="F32"), "F32"),
        (lambda t: t["slots"].update(shape=[5, 19]), r"\[5, 19\]"),
        (lambda t: t["slots"].update(data_offsets=[0, 1 << 60]), "'slots'"),
        (lambda t: t.update({"head.weighs": t.pop("head.weight")}), "'head.weight'"),
        (lambda t: t.pop("gate"), "'gate'"),
        (lambda t: t.update(surplus=t["gate"]), "'surplus'"),
        (lambda t: t.update(__metadata__={"a": "b"}), "'__metadata__'"),
        (lambda t: t.update(gate="\ud800" * 50), "'gate'"),
    ],
)
def test_a_header_that_differs_is_refused_and_the_tensor_named(manifest: Manifest, change: object, names: str) -> None:
    layout = Layout.of(manifest)
    table = header_table(layout, 2)
    assert callable(change)
    change(table)
    body = layout.encode_body(filled(layout, 2), Codec.BF16)
    with pytest.raises(RemoteProtocolError, match=names) as caught:
        layout.decode(object_with(table, body), 2, Codec.BF16)
    assert caught.value.code is NackCode.SHAPE
    assert len(str(caught.value).encode()) < 1000


@pytest.mark.parametrize("wrong", [Codec.FP32, Codec.FP16, Codec.INT8])
def test_another_codec_than_the_assigned_one_is_refused(manifest: Manifest, wrong: Codec) -> None:
    layout = Layout.of(manifest)
    with pytest.raises(RemoteProtocolError, match="dtype"):
        layout.decode(layout.encode(filled(layout, 2), wrong), 2, Codec.BF16)


def test_another_rank_than_the_assigned_one_is_refused(manifest: Manifest) -> None:
    layout = Layout.of(manifest)
    with pytest.raises(RemoteProtocolError, match="'slots'"):
        layout.decode(layout.encode(filled(layout, 3), Codec.BF16), 2, Codec.BF16)


def test_a_header_spelled_otherwise_is_refused(manifest: Manifest) -> None:
    layout = Layout.of(manifest)
    table = header_table(layout, 2)
    body = layout.encode_body(filled(layout, 2), Codec.BF16)
    for text in (json.dumps(table).encode(), json.dumps(table, sort_keys=True, separators=(",", ":")).encode()):
        with pytest.raises(RemoteProtocolError, match="canonical"):
            layout.decode(len(text).to_bytes(8, "little") + text + body, 2, Codec.BF16)


@pytest.mark.parametrize("length", [0, 8, 1 << 40, (1 << 64) - 1])
def test_a_header_length_that_lies_is_refused(manifest: Manifest, length: int) -> None:
    layout = Layout.of(manifest)
    data = length.to_bytes(8, "little") + layout.encode(filled(layout, 2), Codec.BF16)[8:]
    with pytest.raises(RemoteProtocolError, match="payload header"):
        layout.decode(data, 2, Codec.BF16)


def test_factors_are_views_of_the_slots(manifest: Manifest) -> None:
    layout = Layout.of(manifest)
    tensors = filled(layout, 2)
    b, a = layout.factors(tensors.slots, "layer.0.value")
    assert (b.shape, a.shape) == ((3, 2), (2, 6))
    b[1, 0], a[1, 5] = 41.0, 42.0
    assert tensors.slots[0, 10 + 1] == 41.0
    assert tensors.slots[1, 10 + 3 + 5] == 42.0


@given(layouts(), st.integers(0, 4), st.sampled_from(Codec))
def test_one_trainable_out_of_a_body_is_the_one_of_the_whole(layout: Layout, rank: int, codec: Codec) -> None:
    body = layout.encode_body(filled(layout, rank), codec)
    whole = layout.decode_body(body, rank, codec)
    for module in layout.low_rank:
        for one, all_of_it in zip(
            layout.decode_factors(body, rank, codec, module.name),
            layout.factors(whole.slots, module.name),
            strict=True,
        ):
            np.testing.assert_array_equal(one, all_of_it)
    for tensor in layout.dense:
        np.testing.assert_array_equal(layout.decode_dense(body, codec, tensor.name), whole.dense[tensor.name])


@given(layouts(), st.integers(0, 4), st.sampled_from(Codec))
def test_what_is_cut_out_of_a_body_is_the_body_of_that_module_alone(layout: Layout, rank: int, codec: Codec) -> None:
    body = layout.encode_body(filled(layout, rank), codec)
    for module in layout.low_rank:
        alone, data = layout.only(module.name), layout.cut(body, rank, codec, module.name).tobytes()
        assert len(data) == alone.body_bytes(rank, codec)
        assert alone.cut(data, rank, codec, module.name).tobytes() == data
        for one, same in zip(
            alone.decode_factors(data, rank, codec, module.name),
            layout.decode_factors(body, rank, codec, module.name),
            strict=True,
        ):
            np.testing.assert_array_equal(one, same)
    assert layout.only("no such module").body_bytes(rank, codec) == 0


@given(layouts(), st.integers(0, 4), st.sampled_from(Codec), st.data())
def test_what_is_extracted_of_a_body_is_the_body_of_that_part_and_parts_make_the_whole(
    layout: Layout, rank: int, codec: Codec, data: st.DataObject
) -> None:
    names = [item.name for item in (*layout.low_rank, *layout.dense)]
    keep = data.draw(st.sets(st.sampled_from(names)))
    ours, others = (
        Layout(
            tuple(module for module in layout.low_rank if (module.name in keep) == wanted),
            tuple(tensor for tensor in layout.dense if (tensor.name in keep) == wanted),
            layout.frozen,
        )
        for wanted in (True, False)
    )
    body = layout.encode_body(filled(layout, rank), codec)
    bodies = [(part, layout.extract(body, rank, codec, part)) for part in (ours, others)]
    decoded = [(part, part.decode_body(each, rank, codec)) for part, each in bodies]
    for (part, each), (_, tensors) in zip(bodies, decoded, strict=True):
        assert len(each) == part.body_bytes(rank, codec)
        if codec is not Codec.INT8:  # whose scales need not be found again
            assert part.encode_body(tensors, codec) == each
    if not layout.frozen:
        assert equal(layout.join(decoded), layout.decode_body(body, rank, codec))


def test_a_tensor_that_is_not_in_the_layout_is_named(manifest: Manifest) -> None:
    layout = Layout.of(manifest)
    body = layout.encode_body(layout.zeros(1), Codec.FP32)
    with pytest.raises(KeyError, match="nothing of this name"):
        layout.decode_dense(body, Codec.FP32, "nothing of this name")


def test_active_names_keep_the_manifests_order(manifest: Manifest) -> None:
    layout = Layout.of(manifest, ["layer.0.value", "gate", "head.weight"])
    assert [t.name for t in layout.dense] == ["head.weight", "gate"]
    assert [m.name for m in layout.low_rank] == ["layer.0.value"]
    with pytest.raises(RemoteProtocolError, match="'nothing' is not a trainable"):
        Layout.of(manifest, ["nothing"])


def test_tensors_that_do_not_fit_are_not_encoded(manifest: Manifest) -> None:
    layout = Layout.of(manifest)
    good = filled(layout, 2)
    for dense in ({}, {**good.dense, "head.bias": np.zeros(3, np.float32)}):
        with pytest.raises(LocalProtocolError, match="head"):
            layout.encode(AdapterTensors(dense, good.slots), Codec.FP32)
    with pytest.raises(LocalProtocolError, match="slots"):
        layout.encode(AdapterTensors(good.dense, good.slots[:, :-1]), Codec.FP32)
