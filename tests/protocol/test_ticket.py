"""Tickets and the names that both sides compute."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import NackCode, RemoteProtocolError
from protocol.identity import check_key, client_id, upload_id
from protocol.ticket import Ticket

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
KEYS = st.text(Z85, min_size=40, max_size=40)
TOKENS = st.text("0123456789abcdef", min_size=32, max_size=32)
TICKETS = st.builds(
    Ticket,
    run=TEXT,
    endpoint=TEXT,
    enrolment_endpoint=TEXT,
    server_key=KEYS,
    token=st.none() | TOKENS,
    expires_at=st.none() | st.floats(0, 1e12),
)


@given(TICKETS)
def test_a_ticket_survives_its_file(ticket: Ticket) -> None:
    assert Ticket.from_json(ticket.to_json()) == ticket


@given(TICKETS, st.data())
def test_a_broken_ticket_is_refused_as_a_ticket(ticket: Ticket, data: st.DataObject) -> None:
    whole = ticket.to_json().rstrip()
    with pytest.raises(RemoteProtocolError, match="ask the operator") as caught:
        Ticket.from_json(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert caught.value.code is NackCode.TICKET


@pytest.mark.parametrize(
    "change",
    [
        {"format": "tributary-ticket/2"},
        {"server_key": "0" * 39},
        {"server_key": "0" * 39 + "~"},
        {"server_key": "0" * 40 + "\n"},
        {"server_key": None},
        {"token": "secret"},
        {"token": 5},
        {"run": None},
        {"expires_at": "tomorrow"},
        {"surplus": 1},
        {"endpoint": "x" * 9000},
    ],
)
def test_a_ticket_with_a_wrong_field_is_refused(change: dict[str, Any]) -> None:
    good = Ticket(run="r", endpoint="tcp://h:1", enrolment_endpoint="tcp://h:2", server_key="0" * 40, token=None)
    with pytest.raises(RemoteProtocolError) as caught:
        Ticket.from_json(json.dumps(json.loads(good.to_json()) | change).encode())
    assert caught.value.code is NackCode.TICKET


@given(KEYS)
def test_a_curve_key_is_one_of_40_z85_characters(key: str) -> None:
    assert check_key(key) == key
    for wrong in (key[:-1], key + "0", key[:-1] + "\n", key[:-1] + " ", key[:-1] + "٠"):
        with pytest.raises(RemoteProtocolError):
            check_key(wrong)


@given(KEYS)
def test_a_client_id_is_safe_in_a_path(key: str) -> None:
    assert len(client_id(key)) == 16
    assert set(client_id(key)) <= set("0123456789abcdef")


@given(TEXT, st.integers(1, 99), KEYS, TOKENS, st.text("0123456789abcdef", min_size=64, max_size=64))
def test_an_upload_id_depends_on_each_of_its_parts(run: str, number: int, key: str, token: str, sha256: str) -> None:
    same = upload_id(run, number, key, token, sha256)
    others = {
        upload_id(run + "x", number, key, token, sha256),
        upload_id(run, number + 1, key, token, sha256),
        upload_id(run, number, key[::-1] + "x", token, sha256),
        upload_id(run, number, key, token + "0", sha256),
        upload_id(run, number, key, token, sha256 + "0"),
    }
    assert same == upload_id(run, number, key, token, sha256)
    assert len(others | {same}) == 6
