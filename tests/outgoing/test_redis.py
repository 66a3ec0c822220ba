"""Instances that share a Redis: one budget, one block, and separate pacing in an outage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from aiogram import Bot
from aiogram.types import InputMediaPhoto
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    OutgoingLimits,
    Settings,
    without_waiting,
)
from example_bot.demo.botapi import BotApi
from example_bot.demo.floods import FloodControl
from tests.benches import Pauses
from tests.servers import Server

from .programs import share_backlog
from .virtual import TOKEN, Telegram, now, too_many


@pytest.fixture(params=["fakeredis", "redis"])
def shared(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client of each kind of server."""
    return request.getfixturevalue("client" if request.param == "redis" else "fake_client")  # type: ignore[no-any-return] # a client, whichever


def instance(client: Any, telegram: Telegram, **options: Any) -> Bot:
    bot = Bot(TOKEN, telegram)
    OutgoingLimits(client, "test", **({"margin": 0} | options)).setup(bot)
    return bot


async def test_instances_share_a_budget(shared: Any) -> None:
    """Two instances together send to a chat as fast as one may.

    `without_waiting` is about the turn of a request, and not about the answer of Redis.
    """
    telegram, another = Telegram(latency=0.001), Telegram(latency=0.001)
    another.log = telegram.log
    one, two = (instance(shared, each, per_chat="1/50ms burst 2") for each in (telegram, another))
    with without_waiting():
        await one.edit_message_text("x", chat_id=8, message_id=1)
    telegram.log.clear()
    await asyncio.gather(*(bot.send_message(7, "x") for bot in (one, two) for _ in range(4)))
    assert len(telegram.log) == 8
    assert telegram.times()[-1] >= 0.29


async def test_instances_share_what_an_album_owes(shared: Any) -> None:
    """After an album of six and a burst of two, the other instance waits for all six permits."""
    one, two = (
        instance(shared, Telegram(latency=0.001), per_chat="1/50ms burst 2") for _ in range(2)
    )
    await one.send_media_group(7, [InputMediaPhoto(media="1")] * 6)
    began = now()
    await two.send_message(7, "x")
    assert now() - began >= 0.23


async def test_a_block_is_a_key_with_a_ttl(shared: Any) -> None:
    """After a 429 Redis stores the block, and other instances follow it."""
    one, two = Telegram(latency=0.001), Telegram(latency=0.001)
    one.errors = [too_many(1)]
    first, second = instance(shared, one), instance(shared, two)
    began = now()
    task = asyncio.create_task(first.send_message(-100, "x"))
    blocked = "test:ratelimit:bot:42:out:blocked:-100"
    while (left := await shared.pttl(blocked)) < 0:  # noqa: ASYNC110 - the other instance decides
        await asyncio.sleep(0.005)
    assert left <= 1_000
    assert now() + left / 1_000 >= began + 1 - 0.001
    await second.send_message(8, "another chat")
    assert await shared.pttl(blocked) > 0
    await asyncio.gather(task, second.send_message(-100, "x"))
    assert two.log[-1][0] - began >= 1
    keys = {key.decode() if isinstance(key, bytes) else key for key in await shared.keys("*")}
    stem = ":bot:42:out:"
    bucket, sliding = f"test:ratelimit:bucket{stem}", f"test:ratelimit:sliding{stem}"
    assert {f"{bucket}chat:-100", f"{sliding}group:-100"} <= keys
    assert all(key.startswith((bucket, sliding, f"test:ratelimit{stem}")) for key in keys)
    assert [key for key in keys if await shared.ttl(key) == -1] == []


async def test_pacing_continues_without_redis(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """When Redis dies nothing is lost, no chat gets a second burst, and it is logged once."""
    async with aioredis.Redis(port=own_server.port) as client:
        telegram = Telegram(latency=0.001)
        bot, began = instance(client, telegram, per_chat="1/100ms burst 3"), now()
        await asyncio.gather(*(bot.send_message(7, "x") for _ in range(3)))
        own_server.kill()
        with caplog.at_level(logging.WARNING):
            await asyncio.gather(*(bot.send_message(7, "x") for _ in range(4)))
        assert len(telegram.log) == 7
        assert telegram.log[-1][0] - began >= 0.4
        assert caplog.text.count("this process paces requests by itself") == 1


@pytest.mark.parametrize("turns", [1, 4])
async def test_two_shutdowns_at_once_and_a_cancelled_one(shared: Any, turns: int) -> None:
    """Closing does not wait for another `close`, and one that is cancelled blocks no request."""
    telegram = Telegram(latency=0.001)
    outgoing = OutgoingLimits(shared, "test")
    bot = Bot(TOKEN, telegram)
    outgoing.setup(bot)
    sending = [asyncio.create_task(bot.send_message(chat, "x")) for chat in range(1, 50)]
    for _ in range(turns):
        await asyncio.sleep(0)
    closing = [asyncio.create_task(outgoing.close()) for _ in range(3)]
    await asyncio.sleep(0)
    closing[0].cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([*sending, *closing])
        await outgoing.open()
        await asyncio.gather(*(bot.send_message(chat, "y") for chat in range(100, 150)))
    assert telegram.texts().count("y") == 50
    await outgoing.close()
    await outgoing.limiter.close()


async def test_from_settings(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment gives Redis, prefix and RATE_LIMIT_FILE the budgets; arguments win over them.

    Only its own client is closed.
    """
    environment.setenv("REDIS_KEY_PREFIX", "mine")
    outgoing = OutgoingLimits.from_settings(per_chat="2/s", limiter=None)
    assert (outgoing.limiter.key_prefix, outgoing.limiter.storage.source) == ("mine", "memory")
    environment.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    outgoing = OutgoingLimits.from_settings(Settings(), key_prefix="other")
    assert (outgoing.limiter.key_prefix, outgoing.limiter.storage.source) == ("other", "redis")
    await outgoing.close()
    for client in (FakeAsyncRedis(), None):
        outgoing = OutgoingLimits.from_settings(redis_client=client)
        source = "redis" if client else "memory"
        assert (outgoing.limiter.key_prefix, outgoing.limiter.storage.source) == ("mine", source)
    outgoing = OutgoingLimits.from_settings(redis_client=FakeAsyncRedis(), key_prefix="other")
    assert outgoing.limiter.key_prefix == "other"
    assert OutgoingLimits.from_settings(limiter=None).limiter.storage.source == "redis"
    (tmp_path / "limits.toml").write_text('[outgoing]\nper_chat = "2/s"\nretries = 7\n')
    environment.setenv("RATE_LIMIT_FILE", "limits.toml")
    limiter = Limiter(MemoryStorage())
    outgoing = OutgoingLimits.from_settings(limiter=limiter)
    assert (outgoing.limiter, outgoing.retries) == (limiter, 7)
    assert outgoing.budgets.chat is not None
    assert outgoing.budgets.chat.capacity == 2
    assert OutgoingLimits.from_settings(limiter=limiter, retries=1).retries == 1
    with pytest.raises(ConfigError, match="both given"):
        OutgoingLimits(FakeAsyncRedis(), limiter=limiter)


@pytest.mark.slow
async def test_three_processes_share_a_backlog(own_server: Server) -> None:
    """All messages arrive over HTTP once and in order, and the waits of 429s are kept."""
    floods = FloodControl(bulk=1_000_000)
    async with BotApi(floods) as api:
        with Pauses() as pauses:
            options = {"chats": 10, "each": 8}
            assert await share_backlog(api.url, own_server.url, 3, options) == [0, 0, 0]
    for chat in range(1, 11):
        texts = [call.text.split() for call in api.calls if call.chat_id == chat]
        assert len(texts) == 8
        for number in range(3):
            assert [int(i) for who, i in texts if who == str(number)] == [*range(number, 8, 3)]
    # What arrives after a pause of this machine looks like a flood, in every chat.
    assert len(api.refused) <= (5 if pauses.longest < 0.1 else 15)
    assert floods.impatient == 0


def test_another_event_loop_is_like_the_first() -> None:
    """In a second `asyncio.run`, chats that wait for each other to ask Redis are asked for, too;
    broadcasts wait for their budget, and the shutdown for answers."""
    telegram = Telegram(latency=0.001)
    outgoing = OutgoingLimits(FakeAsyncRedis(server=FakeServer()), "test", broadcast="20/s")
    bot = Bot(TOKEN, telegram)
    outgoing.setup(bot)

    async def run() -> None:
        await asyncio.gather(*(bot.send_message(chat, "x") for chat in range(1, 100)))
        async with outgoing.broadcasting():
            await asyncio.gather(*(bot.send_message(chat, "x") for chat in range(100, 123)))
        telegram.latency = lambda: 0.2
        task = asyncio.create_task(bot.send_message(200, "x"))
        await asyncio.sleep(0.1)
        await outgoing.close()
        assert task.done()
        telegram.latency = lambda: 0.001
        await outgoing.limiter.close()
        await outgoing.open()

    asyncio.run(run())
    asyncio.run(run())
    assert len(telegram.log) == 2 * (99 + 23 + 1)
