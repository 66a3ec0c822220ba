"""Server-sent events: what happens, as it happens, at little cost."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, web

from bot_ratelimit import MemoryStorage, RedisStorage
from bot_ratelimit.admin import admin_app
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.web import stream
from tests.servers import Server

from .web import BEARER, TOKEN, Site, Visitor, bot_on, init_data, running_bot, site

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream reads every 20 ms instead of every two seconds."""
    monkeypatch.setattr(stream, "EVERY", 0.02)


@asynccontextmanager
async def following(visitor: Visitor) -> AsyncIterator[ClientResponse]:
    url = visitor._server.make_url(f"{visitor.root}events")
    async with visitor.session.get(url) as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        yield response


async def message(response: ClientResponse) -> Any:
    """The next message; comments are passed over. None at the end."""
    async with asyncio.timeout(10):
        while line := await response.content.readline():
            if line.startswith(b"data: "):
                assert await response.content.readline() == b"\n"
                return json.loads(line.removeprefix(b"data: "))
    return None


@pytest.mark.usefixtures("hurried")
async def test_a_stream_starts_at_once_and_moves(shared: RedisStorage) -> None:
    """Totals by hour, instances with their versions, and health; a decision is seen soon."""
    async with (
        running_bot(shared, version=1) as found,
        found.script() as script,
        following(script) as events,
    ):
        first = await message(events)
        assert (first["health"]["problem"], first["version"], first["problem"]) == ("", 1, "")
        assert first["health"]["ok"]
        assert [each["version"] for each in first["instances"]] == [1]
        assert len(first["hours"]) == 24
        assert first["at"] == pytest.approx(time.time(), abs=30)
        assert first["hours"][-1].keys() == {"hour", "allowed", "refused", "banned"}
        await found.send(5)
        while (await message(events))["hours"][-1]["refused"] != 2:
            pass
        await script.change("POST", "api/exempt", {"id": 42})
        while (await message(events))["version"] != 2:
            pass


@pytest.mark.usefixtures("hurried")
async def test_one_reader_serves_all_and_rests_when_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, found: Site
) -> None:
    """Ten browsers cost Redis as much as one, and none costs nothing."""
    looks = 0
    health = Control.health

    async def counted(self: Control) -> Any:
        nonlocal looks
        looks += 1
        return await health(self)

    monkeypatch.setattr(Control, "health", counted)
    visitors = [found.script() for _ in range(10)]
    opened = [await each.__aenter__() for each in visitors]
    streams = [following(each) for each in opened]
    began = time.monotonic()
    events = [await each.__aenter__() for each in streams]
    for _ in range(10):
        await asyncio.gather(*map(message, events))
    # One at the start, and one after each pause, however many browsers there are.
    assert 10 <= looks <= 1 + (time.monotonic() - began) / stream.EVERY
    for each in (*streams, *visitors):
        await each.__aexit__(None, None, None)
    async with asyncio.timeout(10):
        rested = 0
        while looks != rested:  # the server finds out when it writes
            rested = looks
            await asyncio.sleep(0.1)
    async with found.script() as again, following(again) as response:
        assert (await message(response))["problem"] == ""


@pytest.mark.usefixtures("hurried")
async def test_a_browser_that_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Closing the page writes nothing into the log of the bot."""
    app = admin_app(bot_on(MemoryStorage()), token=TOKEN, max_streams=1)
    runner = web.AppRunner(app)  # a test server would cancel the handler, which a bot's does not
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/events"
    async with ClientSession(headers=BEARER) as session:
        async with session.get(url) as events:
            assert await message(events)
        async with asyncio.timeout(10):
            while (await session.head(url)).status == 503:
                pass
    await runner.cleanup()
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


async def test_only_so_many_may_follow() -> None:
    """One more is 503, and may come in when another leaves."""
    async with site(bot_on(MemoryStorage()), max_streams=2) as found, found.script() as script:
        async with following(script) as first, following(script) as second:
            assert await message(first)
            assert await message(second)
            reply = await script.get("events")
            assert (reply.status, reply.headers["Retry-After"]) == (503, "10")
            assert reply.content["status"] == 503
        async with asyncio.timeout(10):
            while (await script.ask("HEAD", "events")).status == 503:
                pass


async def test_strangers_follow_nothing() -> None:
    """Without access the stream answers 401."""
    async with site(bot_on(MemoryStorage())) as found, found.visitor() as stranger:
        assert (await stranger.get("events")).status == 401


async def test_streams_end_with_the_application() -> None:
    """The server stops without waiting for connected browsers."""
    async with (
        site(bot_on(MemoryStorage())) as found,
        found.script() as script,
        following(script) as events,
    ):
        assert await message(events)
        began = time.monotonic()
        await found.server.close()
        assert await message(events) is None
        assert time.monotonic() - began < 5


@pytest.mark.usefixtures("hurried")
async def test_a_stream_lasts_five_minutes(found: Site, visitor: Visitor) -> None:
    """Then the browser connects again, and is refused if the session was logged out elsewhere."""
    await visitor.log_in()
    async with following(visitor) as events:
        assert await events.content.readline() == b"retry: 1000\n"
        assert await message(events)
        assert (await visitor.change("POST", "logout")).status == 303
        found.now.ahead = 301
        while await message(events) is not None:
            pass
    assert (await visitor.get("events")).status == 401


@pytest.mark.usefixtures("hurried")
async def test_a_stream_ends_with_its_session(
    monkeypatch: pytest.MonkeyPatch, found: Site, visitor: Visitor
) -> None:
    """When the session's time is over, the stream is, too."""
    monkeypatch.setattr(stream, "LASTS", 1e9)
    await visitor.log_in(init_data=init_data())
    async with following(visitor) as events:
        assert await message(events)
        found.now.ahead = 3_601
        while await message(events) is not None:
            pass


async def test_silence_is_filled_with_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy does not close the stream, and a browser that has gone is noticed."""
    monkeypatch.setattr(stream, "EVERY", 3_600)
    monkeypatch.setattr(stream, "HEARTBEAT", 0.02)
    async with (
        site(bot_on(MemoryStorage())) as found,
        found.script() as script,
        following(script) as events,
    ):
        assert await message(events)
        while await events.content.readline() != b": keep-alive\n":
            pass


@pytest.mark.usefixtures("hurried")
async def test_an_outage_is_a_message(own_server: Server, own: RedisStorage) -> None:
    """Without Redis the stream stays open and says so; it has new data when Redis is back."""
    async with (
        running_bot(own) as found,
        found.script() as script,
        following(script) as events,
    ):
        assert (await message(events))["health"]["ok"]
        own_server.kill()
        while (said := await message(events))["health"]["ok"]:
            pass
        assert said["problem"]
        own_server.start()
        while not (await message(events))["health"]["ok"]:
            pass


async def test_a_browser_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing cannot hold a stream, or memory, forever."""
    monkeypatch.setattr(stream, "EVERY", 0.0)
    monkeypatch.setattr(stream, "_SLOWEST", 0.1)

    async def much(*_: Any) -> Any:
        return {"at": 0, "filler": "x" * 1_000_000}

    monkeypatch.setattr(stream, "_looked", much)
    async with site(bot_on(MemoryStorage()), max_streams=1) as found, found.script() as script:
        _, writer = await asyncio.open_connection(found.server.host, found.server.port, limit=1)
        writer.write(
            b"GET /ops/admin/events HTTP/1.1\r\nHost: here\r\nAuthorization: "
            + BEARER["Authorization"].encode()
            + b"\r\n\r\n"
        )
        for held in (True, False):
            async with asyncio.timeout(10):
                while ((await script.ask("HEAD", "events")).status == 503) is not held:
                    pass
        writer.close()
