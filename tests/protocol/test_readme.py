"""The wire specification says what the code does: its table, messages, fields, codes and numbers."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import protocol
from protocol.errors import NackCode
from protocol.messages import MESSAGES
from protocol.states import TRANSITIONS

README = (Path(protocol.__file__).parent / "README.md").read_text()


def transition_table() -> str:
    """The table of section 3."""
    lines = ["| state | message → next state |", "|---|---|"]
    for state, moves in TRANSITIONS.items():
        cells = ", ".join(f"{kind} → {target}" for kind, target in sorted(moves.items()))
        lines.append(f"| {state} | {cells or 'nothing'} |")
    return "\n".join(lines)


def test_the_transition_table_is_the_codes_own() -> None:
    assert f"compares -->\n{transition_table()}\n<!-- end -->" in README, f"paste this:\n{transition_table()}"


@pytest.mark.parametrize("kind", MESSAGES.values(), ids=lambda kind: kind.type)
def test_each_message_stands_in_the_table_with_its_sender_and_fields_in_wire_order(kind: type) -> None:
    row = re.search(rf"^\| `{kind.type}` \| (\w+) \| (.*) \| (.*)\|$", README, re.MULTILINE)
    assert row is not None
    sender, cells, payload = row.groups()
    assert sender == ("both" if len(kind.senders) == 2 else kind.senders[0])
    top_level = re.sub(r" map: .*|as in `\w+`", "", cells)
    assert re.findall(r"`(\w+)`", top_level) == [f.name for f in fields(kind) if f.name not in ("q", "payload")]
    assert bool(payload.strip()) == (kind.payload_max > 0)


def test_every_refusal_is_listed_under_terminal_or_others() -> None:
    terminal, others = README.split("## 9. Refusals")[1].split("## 10.")[0].split("Others:")
    for code in NackCode:
        assert f"`{code}`" in (terminal if code.terminal else others)
