"""The manifest: one canonical form, one digest, and nothing readable that cannot be written."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import LocalProtocolError, NackCode, RemoteProtocolError
from protocol.initializers import Distribution, Initializer
from protocol.manifest import (
    BaseModel,
    DenseTensor,
    LowRankModule,
    Manifest,
    Pooling,
    Quantization,
    Task,
    TaskKind,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = TEXT.filter(lambda name: name not in ("", "slots", "__metadata__"))
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
INITIALIZERS = st.builds(
    Initializer,
    distribution=st.sampled_from(Distribution),
    scale=st.floats(0, 1e6) | st.integers(0, 10),
    seed=st.integers(0, (1 << 63) - 1),
)
TASKS = st.builds(
    Task,
    kind=st.sampled_from(TaskKind),
    max_length=st.integers(1, 1 << 20),
    labels=st.lists(TEXT, min_size=2, max_size=4, unique=True).map(tuple),
    pooling=st.sampled_from(Pooling),
    template=st.none() | TEXT,
).filter(lambda task: not task.kind.on_images or task.template is None)

OPTIONS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 62), 1 << 62),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    TEXT,
    st.lists(TEXT, max_size=3).map(tuple),
    st.lists(st.integers(-(1 << 62), 1 << 62), max_size=3).map(tuple),
)


def bases(task: Task) -> st.SearchStrategy[BaseModel]:
    digest, other = "image_processor_digest", "tokenizer_digest"
    if not task.kind.on_images:
        digest, other = other, digest
    return st.builds(
        BaseModel,
        name=TEXT,
        fingerprint=DIGESTS,
        architecture=TEXT,
        quantizations=st.lists(st.sampled_from(Quantization), min_size=1, unique=True).map(tuple),
        **{digest: DIGESTS, other: st.none()},
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    split = draw(st.integers(0, len(names)))
    size = st.integers(1, limits.DIMENSION_MAX)
    rank_max = draw(st.integers(1, limits.RANK_MAX))
    task = draw(TASKS)
    return Manifest(
        base=draw(bases(task)),
        task=task,
        rank_max=rank_max,
        method=draw(TEXT),
        method_options=draw(st.dictionaries(TEXT, OPTIONS, max_size=3)),
        low_rank=tuple(LowRankModule(name=n, out_features=draw(size), in_features=draw(size)) for n in names[:split]),
        dense=tuple(
            DenseTensor(
                name=n,
                shape=tuple(draw(st.lists(st.integers(1, 32), max_size=8))),
                initializer=draw(st.none() | INITIALIZERS),
                rank_min=draw(st.integers(1, rank_max)),
            )
            for n in names[split:]
        ),
    )


@given(manifests())
def test_a_manifest_survives_the_wire_with_its_digest(manifest: Manifest) -> None:
    read = Manifest.from_json(manifest.to_json())
    assert read == manifest
    assert read.digest == manifest.digest


@given(manifests())
def test_white_space_and_key_order_do_not_change_the_identity(manifest: Manifest) -> None:
    table = json.loads(manifest.to_json())
    spaced = json.dumps(dict(reversed(table.items())), indent=2, ensure_ascii=False).encode()
    assert Manifest.from_json(spaced).digest == manifest.digest


@given(manifests(), st.integers(1, limits.RANK_MAX))
def test_a_device_trains_what_its_rank_reaches(manifest: Manifest, rank: int) -> None:
    left_alone = {tensor.name for tensor in manifest.dense if tensor.rank_min > rank}
    assert manifest.active(rank) == tuple(name for name in manifest.names if name not in left_alone)
    assert manifest.active(manifest.rank_max) == manifest.names


def table_of(manifest: Manifest) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(manifest.to_json())
    return table


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths(item, (*path, key)))]


def put(table: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    table[path[0]] = put(table[path[0]], path[1:], value)
    return table


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=120)
@given(manifests(), JSON, st.data())
def test_any_value_in_any_place_is_refused_or_gives_a_manifest_that_can_be_written(
    manifest: Manifest, value: Any, data: st.DataObject
) -> None:
    table = table_of(manifest)
    table = put(table, data.draw(st.sampled_from(paths(table))), value)
    try:
        read = Manifest.from_json(json.dumps(table).encode())
    except RemoteProtocolError as error:
        assert len(str(error).encode()) < 8000
    else:
        assert Manifest.from_json(read.to_json()) == read


@given(manifests(), st.data())
def test_a_truncated_manifest_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    whole = manifest.to_json()
    with pytest.raises(RemoteProtocolError):
        Manifest.from_json(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(format="tributary-manifest/3"), "format"),
        (lambda t: t.update(rank_max=0), "rank_max"),
        (lambda t: t.update(rank_max=True), "rank_max"),
        (lambda t: t.update(rank_max=limits.RANK_MAX + 1), "rank_max"),
        (lambda t: t.update(low_rank=[], dense=[]), "nothing to train"),
        (lambda t: t.update(surplus=1), "surplus"),
        (lambda t: t["base"].update(surplus=1), "surplus"),
        (lambda t: t["base"].update(fingerprint="F" * 64), "fingerprint"),
        (lambda t: t["base"].update(quantizations=[]), "quantisation"),
        (lambda t: t["base"].update(quantizations=["nf4", "nf4"]), "twice"),
        (lambda t: t["task"].update(labels=["yes"]), "two labels"),
        (lambda t: t["task"].update(labels=["yes", "yes"]), "two labels"),
        (lambda t: t["task"].update(labels=["l"] * (limits.LABELS_MAX + 1)), "labels"),
        (lambda t: t["base"].update(tokenizer_digest=None), "needs the digest of the base's tokenizer"),
        (lambda t: t["base"].update(image_processor_digest="0" * 64), "tokenizer, and no other's"),
        (lambda t: t["task"].update(kind="image-classification"), "image processor, and no other's"),
        (lambda t: t["task"].update(kind="image-classification", template="{a}"), "no template"),
        (lambda t: t["dense"][0].update(name="slots"), "reserved"),
        (lambda t: t["dense"][0].update(name=""), "no name"),
        (lambda t: t["dense"][0].update(name="\ud800"), "surrogates"),
        (lambda t: t["dense"][0].update(name="gate"), "share one name"),
        (lambda t: t["dense"][0].update(name="layer.0.query"), "share one name"),
        (lambda t: t["dense"][0].update(shape=[0]), "shape"),
        (lambda t: t["dense"][0].update(shape=[1] * 9), "shape"),
        (lambda t: t["dense"][0].update(shape=[1 << 21, 1 << 20]), "2\\*\\*40"),
        (lambda t: t["dense"][0]["initializer"].update(scale=-1), "scale"),
        (lambda t: t["dense"][0]["initializer"].update(seed=1 << 63), "seed"),
        (lambda t: t["dense"][0].update(rank_min=0), "rank_min"),
        (lambda t: t["dense"][0].update(rank_min=t["rank_max"] + 1), "rank_min"),
        (lambda t: t.update(method_options={"a": {}}), "'a'"),
        (lambda t: t.update(method_options={"a": ["b", 1]}), "'a'"),
        (lambda t: t.update(method_options={"a": [1, "b"]}), "'a'"),
        (lambda t: t.update(method_options={"a": [1, True]}), "'a'"),
        (lambda t: t.update(method_options={"a": [1, 1 << 63]}), "'a'"),
        (lambda t: t.update(method_options={"a": 1 << 63}), "'a'"),
        (lambda t: t.update(method_options=[]), "method_options"),
        (
            lambda t: t.update(method_options={str(n): n for n in range(limits.METHOD_OPTIONS_MAX + 1)}),
            "method_options",
        ),
        (lambda t: t["low_rank"][0].update(in_features=1 << 40), "in_features"),
    ],
)
def test_a_manifest_out_of_bounds_is_refused_with_the_field_named(
    manifest: Manifest, change: Any, message: str
) -> None:
    table = table_of(manifest)
    change(table)
    with pytest.raises(RemoteProtocolError, match=message):
        Manifest.from_json(json.dumps(table).encode())


def test_another_format_is_incompatible(manifest: Manifest) -> None:
    table = table_of(manifest) | {"format": "tributary-manifest/1"}
    with pytest.raises(RemoteProtocolError) as caught:
        Manifest.from_json(json.dumps(table).encode())
    assert caught.value.code is NackCode.INCOMPATIBLE


@pytest.mark.parametrize(
    "change",
    [
        {"rank_max": 0},
        {"low_rank": (LowRankModule(name="q", out_features=0, in_features=1),)},
        {"dense": (DenseTensor(name="d", shape=(1,) * 9),)},
        {"dense": (DenseTensor(name="d", shape=(0,)),)},
        {"dense": (DenseTensor(name="d", shape=(1 << 30, 1 << 30)),)},
        {"dense": (DenseTensor(name="d", shape=(1,)), DenseTensor(name="d", shape=(2,)))},
    ],
)
def test_a_manifest_that_could_not_be_read_cannot_be_made(manifest: Manifest, change: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be used"):
        dataclasses.replace(manifest, **change)


def test_all_faults_are_told_at_once_but_not_without_end(manifest: Manifest) -> None:
    modules = tuple(LowRankModule(name=f"{n}", out_features=0, in_features=0) for n in range(5000))
    with pytest.raises(LocalProtocolError, match=r"rank_max 0.*and 4991 more") as caught:
        dataclasses.replace(manifest, rank_max=0, low_rank=modules)
    assert len(str(caught.value)) < 2000


def test_an_initializer_scale_has_one_digest_however_it_is_typed(manifest: Manifest) -> None:
    digests = set()
    for scale in (1, 1.0):
        head = DenseTensor(name="h", shape=(1,), initializer=Initializer(distribution=Distribution.NORMAL, scale=scale))
        digests.add(dataclasses.replace(manifest, dense=(head,)).digest)
    assert len(digests) == 1


def test_names_are_in_wire_order(manifest: Manifest) -> None:
    assert manifest.names == ("head.weight", "head.bias", "gate", "layer.0.query", "layer.0.value")
