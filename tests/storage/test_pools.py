"""Small, shared, busy or exhausted pools and full queues are not an outage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limiter, RedisStorage, Subject
from bot_ratelimit.storage.redis.connection import MAX_WAITING
from tests.benches import TIMEOUT
from tests.servers import Server


def _pool(server: Server, size: int) -> aioredis.ConnectionPool:
    return aioredis.ConnectionPool(port=server.port, max_connections=size)


def _blocking(server: Server, size: int) -> aioredis.ConnectionPool:
    return aioredis.BlockingConnectionPool(port=server.port, max_connections=size, timeout=60)


@pytest.mark.parametrize("exhausted", [False, True], ids=["busy", "exhausted"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("make", [_pool, _blocking])
async def test_a_small_pool_never_opens_the_limiter(
    redis_server: Server,
    client: aioredis.Redis,
    make: Callable[[Server, int], aioredis.ConnectionPool],
    size: int,
    exhausted: bool,
) -> None:
    """Redis decides everything, however few connections the bot's own client has."""
    pool = make(redis_server, size)
    async with aioredis.Redis.from_pool(pool) as shared, AsyncExitStack() as stack:
        limiter = Limiter(RedisStorage(shared), timeout=TIMEOUT)
        stack.push_async_callback(limiter.close)
        limiter.open()
        if exhausted:
            for _ in range(size):
                stack.push_async_callback(pool.release, await pool.get_connection())
        else:
            for i in range(size):
                working = asyncio.create_task(shared.blpop([f"nothing{i}"], timeout=60))
                stack.callback(working.cancel)
            await asyncio.sleep(0.01)
        found = []
        for _ in range(10):
            found += await asyncio.gather(
                *(limiter.hit("3/m", Subject(user=user)) for user in range(50))
            )
        assert {each.source for each in found} == {"redis"}
        assert sum(each.allowed for each in found) == 150


@pytest.mark.parametrize("at_once", [12_000, MAX_WAITING + 2_000])
async def test_a_flood_is_decided_or_rejected(
    client: aioredis.Redis, at_once: int, caplog: pytest.LogCaptureFixture
) -> None:
    """12,000 hits at once are exact; the excess is logged once and opens no circuit."""
    limiter = Limiter(RedisStorage(client))
    await limiter.hit("3/m", Subject(user=0))
    found = await asyncio.gather(*(limiter.hit("3/m", Subject(user=7)) for _ in range(at_once)))
    by_redis = [each for each in found if each.source == "redis"]
    assert sum(each.allowed for each in by_redis) == 3
    assert len(by_redis) == min(at_once, MAX_WAITING)
    assert int(await client.get("bot:ratelimit:7")) == len(by_redis)
    told = [text for text in caplog.messages if "Too many decisions at once" in text]
    assert len(told) == len(caplog.messages) == (at_once > MAX_WAITING)
    assert (await limiter.hit("3/m", Subject(user=8))).source == "redis"
    await limiter.close()
