"""The operators' commands in Telegram, through a dispatcher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import MemoryStorage, RedisStorage
from tests.admin.operators import STRANGER, Office, office_on
from tests.servers import Server


@pytest.fixture(params=["memory", "redis-server"])
async def storage(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryStorage()
        return
    server: Server = request.getfixturevalue("redis_server")
    async with aioredis.Redis(port=server.port) as client:
        await client.flushall()
        storage = RedisStorage(client)
        yield storage
        await storage.close()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instances look for changes without waiting two seconds."""
    monkeypatch.setattr("bot_ratelimit.live.EVERY", 0.02)
    monkeypatch.setattr("bot_ratelimit.admin.changes.Changes.__init__.__defaults__", (0.0,))


@pytest.fixture
async def office(storage: Any, hurried: None) -> AsyncIterator[Office]:
    async with office_on(storage) as office:
        yield office


async def test_an_admin_sees_the_limits(office: Office) -> None:
    """/limits lists each rule, the live version and the commands."""
    text = await office.says("/limits")
    assert "<code>messages</code>: 3/hour" in text
    assert "No live changes. Instances: 1." in text
    assert "/setlimit" in text
    assert office.handled == []


async def test_a_refused_user_is_forgiven_on_every_instance(storage: Any, office: Office) -> None:
    """After /forgive and a yes the user gets through at once, on a second instance, too."""
    async with office_on(storage) as second:
        assert [await office.is_handled() for _ in range(4)] == [True, True, True, False]
        assert not await second.is_handled()
        assert "refused, free in " in await office.says("/who 42")
        assert "Forgive user <code>42</code>?" in await office.says("/forgive 42")
        assert (
            await office.presses("Forgive")
            == "User <code>42</code> is forgiven: <code>messages</code>"
        )
        assert await second.is_handled()


async def test_a_stranger_does_not_see_the_router(office: Office) -> None:
    """Commands and buttons of everybody else reach the bot's own handlers, and say nothing."""
    await office.says("/ban 42 1h")
    data = office.buttons["Ban"]
    before = len(office.session.requests)
    assert await office.is_handled("/limits", by=STRANGER)
    assert await office.is_handled("/ban@some_bot 42 1h", by=STRANGER)
    await office.presses(data, by=STRANGER)
    assert len(office.handled) == 3
    assert len(office.session.requests) == before


async def test_a_limit_is_changed_and_rolled_back(office: Office) -> None:
    """/setlimit shows what changes, changes it on yes, and tells where it holds; /rollback too."""
    assert "3/hour → <b>1/hour</b>" in await office.says("/setlimit messages 1/h")
    assert "It holds on 1 of 1 instances" in await office.presses("Change")
    assert [await office.is_handled() for _ in range(2)] == [True, False]
    assert "no changes" in await office.says("/rollback")
    assert "Version 2" in await office.presses("Roll back")
    assert [await office.is_handled() for _ in range(2)] == [True, False]
