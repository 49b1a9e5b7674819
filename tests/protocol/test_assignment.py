"""Assignments and tickets: what the two JSON documents that steer a device may say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.assignment import Assignment, AssignmentKind, Handout, LocalTraining
from protocol.codecs import Codec
from protocol.errors import NackCode, RemoteProtocolError
from protocol.manifest import Manifest
from protocol.payload import Factor

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
RATIO = st.floats(0, 1)


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    rank = draw(st.integers(0, limits.RANK_MAX))
    handout = Handout(
        digest=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        object_bytes=draw(st.integers(0, limits.OBJECT_MAX_BYTES)),
        codec=draw(st.sampled_from(Codec)),
        slots=draw(st.integers(rank, limits.RANK_MAX)),
    )
    active = draw(st.none() | st.lists(TEXT, max_size=3).map(tuple))
    return Assignment(
        kind=draw(st.sampled_from(AssignmentKind)),
        run=draw(TEXT),
        round=draw(st.integers(1, 1 << 40)),
        version=draw(st.integers(0, 1 << 40)),
        token=draw(st.text("0123456789abcdef", min_size=32, max_size=32)),
        rank=rank,
        handout=handout,
        update_codec=draw(st.sampled_from(Codec)),
        active=active,
        inactive=None if active is None else draw(st.none() | st.just(replace(handout, digest="f" * 64))),
        frozen_factors=draw(st.lists(st.sampled_from(Factor), max_size=1).map(tuple)),
        local=LocalTraining(
            learning_rate=draw(RATIO),
            learning_rate_scale=draw(RATIO | st.integers(0, 9)),
            epochs=draw(RATIO | st.integers(0, 9)),
            max_steps=draw(st.none() | st.integers(0, 99)),
            batch_size=draw(st.integers(1, 99)),
            weight_decay=draw(RATIO),
            warmup_ratio=draw(RATIO),
            max_grad_norm=draw(RATIO),
            proximal_mu=draw(RATIO),
            noise_multiplier=draw(RATIO),
            clip_norm=draw(RATIO),
            delta=draw(RATIO),
            epsilon_max=draw(st.none() | RATIO),
        ),
        probe=draw(st.none() | TEXT),
        seed=draw(st.integers(0, 1 << 62)),
        deadline_s=draw(st.none() | st.floats(0, 1e9)),
    )


@given(assignments())
def test_an_assignment_survives_the_wire(assignment: Assignment) -> None:
    assert Assignment.from_json(assignment.to_json()) == assignment


@pytest.mark.parametrize(("active", "change"), [(None, {}), (("q",), {"codec": "fp16"}), (("q",), {"slots": 9})])
def test_inactive_trainables_come_only_beside_active_ones_and_in_the_same_form(
    active: tuple[str, ...] | None, change: dict[str, object]
) -> None:
    handout = Handout(digest="0" * 64, object_bytes=9, codec=Codec.FP32, slots=4)
    assignment = Assignment(
        kind=AssignmentKind.TRAIN, run="r", round=1, version=0, token="0" * 32, rank=4, handout=handout, active=active
    )
    table = json.loads(assignment.to_json())
    table["inactive"] = {**table["handout"], **change}
    with pytest.raises(RemoteProtocolError, match="'inactive': expected it with 'active', in codec and slots"):
        Assignment.from_json(json.dumps(table).encode())


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
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
@given(assignments(), JSON, st.data())
def test_any_value_in_any_place_is_refused_or_gives_an_assignment_that_can_be_written(
    assignment: Assignment, value: Any, data: st.DataObject
) -> None:
    table = json.loads(assignment.to_json())
    table = put(table, data.draw(st.sampled_from(paths(table))), value)
    try:
        read = Assignment.from_json(json.dumps(table).encode())
    except RemoteProtocolError as error:
        assert str(error).encode()
    else:
        assert Assignment.from_json(read.to_json()) == read


def small(**changes: Any) -> dict[str, Any]:
    handout = Handout(digest="0" * 64, object_bytes=100, codec=Codec.BF16, slots=4)
    assignment = Assignment(
        kind=AssignmentKind.TRAIN, run="r", round=1, version=0, token="0" * 32, rank=4, handout=handout
    )
    table: dict[str, Any] = json.loads(assignment.to_json())
    return table | changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 5}, "fewer slots than the rank"),
        ({"rank": limits.RANK_MAX + 1}, "'rank'"),
        ({"rank": True}, "'rank'"),
        ({"round": 0}, "'round'"),
        ({"kind": "idle"}, "train, evaluate, probe"),
        ({"token": "0" * 31}, "'token'"),
        ({"update_codec": "fp8"}, "'update_codec'"),
        ({"deadline_s": -1}, "'deadline_s'"),
        ({"deadline_s": "soon"}, "'deadline_s'"),
        ({"active": "all"}, "'active'"),
        ({"frozen_factors": "A"}, "'frozen_factors'"),
        ({"frozen_factors": ["a"]}, "'frozen_factors'"),
        ({"frozen_factors": ["A", "A"]}, "'frozen_factors'"),
        ({"frozen_factors": ["A", "B"]}, "'frozen_factors': one of the two has to train"),
        ({"local": {**small()["local"], "proximal_mu": -1}}, "'proximal_mu'"),
        ({"local": {**small()["local"], "noise_multiplier": -1}}, "'noise_multiplier'"),
        ({"local": {**small()["local"], "epsilon_max": -1}}, "'epsilon_max'"),
        ({"local": {**small()["local"], "delta": 1.5}}, "'delta'"),
        ({"surplus": 0}, "'surplus'"),
        ({"local": {}}, "'learning_rate' is missing"),
        ({"local": {**small()["local"], "batch_size": 0}}, "'batch_size'"),
        ({"handout": {**small()["handout"], "object_bytes": limits.OBJECT_MAX_BYTES + 1}}, "'object_bytes'"),
    ],
)
def test_an_assignment_out_of_bounds_is_refused_with_the_field_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message):
        Assignment.from_json(json.dumps(small(**change)).encode())


def test_an_assignment_above_its_bound_is_refused_unread() -> None:
    with pytest.raises(RemoteProtocolError, match="at most"):
        Assignment.from_json(b" " * (limits.ASSIGNMENT_MAX_BYTES + 1))


def test_slots_beyond_the_rank_are_a_residual() -> None:
    whole = Assignment.from_json(json.dumps(small()).encode())
    assert not whole.residual
    assert Assignment.from_json(json.dumps(small(rank=3)).encode()).residual


def test_the_layout_of_an_update_holds_the_active_trainables_only(manifest: Manifest) -> None:
    active = Assignment.from_json(json.dumps(small(active=["gate", "layer.0.query"])).encode())
    layout = active.update_layout(manifest)
    assert ([t.name for t in layout.dense], [m.name for m in layout.low_rank]) == (["gate"], ["layer.0.query"])
    unknown = Assignment.from_json(json.dumps(small(active=["gone"])).encode())
    with pytest.raises(RemoteProtocolError, match="'gone'") as caught:
        unknown.update_layout(manifest)
    assert caught.value.code is NackCode.SHAPE


@pytest.mark.parametrize(("frozen", "width"), [([], 4 + 6), (["A"], 4), (["B"], 6)])
def test_an_update_holds_no_values_of_a_frozen_factor(manifest: Manifest, frozen: list[str], width: int) -> None:
    given = Assignment.from_json(json.dumps(small(active=["layer.0.query"], frozen_factors=frozen)).encode())
    assert given.update_layout(manifest).width == width
