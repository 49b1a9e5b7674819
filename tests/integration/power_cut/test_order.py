"""The order in which the daemon makes things durable and says so, as the kernel saw it.

On ext4 a power cut cannot show that the folder was flushed, nor that a file was flushed before it got its name: the
journal's flush right after it commits ext4's own journal with everything in it. Other file systems are not so kind.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

SERVE_WITH = Path(__file__).with_name("serve.py")
PATIENCE_S = 20.0
DURABLE = ["write", "flush file", "rename", "flush folder", "commit"]
CALLS = "pwrite64,fsync,fdatasync,rename,sendto"
UPLOAD = re.compile(r'rename\("[^"]*/partial/([0-9a-f]{64})", "[^"]*/objects/../([0-9a-f]{64})"\)')
VERSION = re.compile(r'rename\("[^"]*/partial/(put-[0-9a-f]+)", "[^"]*/objects/../([0-9a-f]{64})"\)')


@pytest.fixture
def traced(new_site: Callable[..., Any], tmp_path: Path) -> Callable[..., list[str]]:
    """``traced(*command)``: the system calls of a daemon, started so, that took two updates and merged the first."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here")

    def trace(*command: str) -> list[str]:
        site, out = new_site((2,), 2), tmp_path / "trace"
        strace = f"strace -D -f -yy -q -s 16 -o {out} -e trace={CALLS}".split()
        start = f"import os, sys; os.execvp('strace', {[*strace, sys.executable, *command]!r} + sys.argv[1:])"
        with site.powered(("-c", start)) as daemon:
            site.wait_for_acks(2)
            daemon.terminate()
            daemon.wait()
        give_up = time.monotonic() + PATIENCE_S
        while f"{daemon.pid} +++ " not in re.sub(" +", " ", out.read_text()):
            assert time.monotonic() < give_up, "strace has not ended"
            time.sleep(0.02)
        return list(finished_calls(out.read_text()))

    return trace


def finished_calls(trace: str) -> Iterator[str]:
    """The lines of a trace without process ids, in the order in which calls ended; a ``sendto`` as soon as it began."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        process, _, call = line.partition(" ")
        head, unfinished, _ = call.strip().partition(" <unfinished ...>")
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", head)
        if unfinished and not head.startswith("sendto"):
            begun[process] = head
        elif resumed is None:
            yield head
        elif process in begun:
            yield begun.pop(process) + resumed[1]


def steps(calls: list[str], moved: re.Match[str], until: str) -> list[str]:
    """What became of one object, from its last byte to the first step of this name after it was moved in."""
    part, digest = moved.groups()
    kinds = {
        "write": rf"pwrite64\(\d+<[^>]*/partial/{part}>",
        "flush file": rf"f(data)?sync\(\d+<[^>]*/({part}|{digest})>\)",
        "rename": rf'rename\("[^"]*/partial/{part}"',
        "flush folder": rf"fsync\(\d+<[^>]*/objects/{digest[:2]}>\)",
        "commit": r"fdatasync\(\d+<[^>]*/journal\.db-wal>\)",
        "send": r"sendto\(\d+<TCP",
    }
    found = [name for call in calls for name, pattern in kinds.items() if re.match(pattern, call)]
    after_rename = found.index("rename")
    last_byte = max(index for index in range(after_rename) if found[index] == "write")
    ending = found.index(until, after_rename) if until in found[after_rename:] else len(found)
    return [name for name, _ in groupby(found[last_byte : ending + 1])]


def moves(calls: list[str], pattern: re.Pattern[str]) -> list[re.Match[str]]:
    return [found for call in calls if (found := pattern.match(call))]


def way_to_the_ack(calls: list[str]) -> list[str]:
    """The steps from the first update's last byte to the first word sent after it was moved in."""
    return steps(calls, moves(calls, UPLOAD)[0], "send")


def test_an_update_is_flushed_named_and_journalled_before_it_is_acknowledged(traced: Callable[..., list[str]]) -> None:
    calls = traced("-m", "aggregator.cli", "serve")
    assert way_to_the_ack(calls) == [*DURABLE, "send"]
    state_and_body = moves(calls, VERSION)[:2]
    assert len(state_and_body) == 2
    for moved in state_and_body:
        assert [step for step in steps(calls, moved, "commit") if step != "send"] == DURABLE


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["no-fsync", "synchronous-normal", "rename-before-fsync", "ack-on-arrival"])
def test_a_daemon_with_another_order_is_found_out(traced: Callable[..., list[str]], fault: str) -> None:
    assert way_to_the_ack(traced(str(SERVE_WITH), fault)) != [*DURABLE, "send"]
