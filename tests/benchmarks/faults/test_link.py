import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults.link import Pace, SlowLink

Scene = Callable[[SlowLink, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def play(scene: Scene, *, cut_after: int | None = None) -> tuple[SlowLink, bytes]:
    """Connects to a server that echoes, through the link; returns the link and what the server got."""
    got = bytearray()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                got.extend(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def run() -> SlowLink:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server, SlowLink(server.sockets[0].getsockname()[1], 1e9, lambda: cut_after) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            await scene(link, reader, writer)
            writer.close()
            await asyncio.sleep(0.05)
        return link

    return asyncio.run(run()), bytes(got)


def test_bytes_arrive_as_they_were_sent_both_ways_and_are_counted() -> None:
    sent = bytes(range(256)) * 2000

    async def scene(link: SlowLink, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent

    link, got = play(scene)
    assert got == sent
    assert [(each.up, each.down, each.cut) for each in link.connections] == [(len(sent), len(sent), False)]


@pytest.mark.parametrize("cut_after", [1, 32_768, 32_769, 99_999])
def test_a_connection_is_cut_at_the_very_byte(cut_after: int) -> None:
    async def scene(link: SlowLink, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(100_000))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(100_000)

    link, got = play(scene, cut_after=cut_after)
    assert [(each.up, each.cut) for each in link.connections] == [(cut_after, True)]
    assert len(got) <= cut_after


def test_a_connection_ends_at_once_while_nobody_listens_behind() -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        async with SlowLink(port, 1e9) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await reader.readexactly(1)
            writer.close()

    asyncio.run(run())


@given(st.lists(st.tuples(st.integers(1, 65536), st.floats(0, 0.05)), min_size=1, max_size=200))
def test_a_pace_is_never_above_its_rate_beyond_what_it_makes_up_for(pieces: list[tuple[int, float]]) -> None:
    rate, now, carried = 1e6, 100.0, 0
    pace, start = Pace(rate), 100.0
    for count, late in pieces:
        now += pace.delay_s(count, now)
        carried += count
        assert carried <= rate * (now - start + 0.1) + 1
        now += late


def test_a_pace_makes_up_for_sleeps_that_were_too_long() -> None:
    pace, now = Pace(1e6), 100.0
    pace.delay_s(10_000, now)
    now += 0.02  # twice what was asked for
    assert pace.delay_s(10_000, now) == pytest.approx(0.0, abs=1e-9)
