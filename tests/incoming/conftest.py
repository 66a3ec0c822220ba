"""Fixtures: one storage in memory or Redis, and three instances of a bot on one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import redis.asyncio as aioredis
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import Limiter, MemoryStorage, RedisStorage
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.testing import Clock

from .updates import Fleet


@pytest.fixture(params=["memory", "redis"])
async def fleet(request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    """Three instances on one empty storage; in `make quick`, Redis is fakeredis."""
    if request.param == "memory":
        # Three dispatchers in one process, which is how far memory reaches.
        yield Fleet([MemoryStorage(clock=Clock())] * 3, None)
        return
    async with AsyncExitStack() as stack:
        if request.config.getoption("quick"):
            server = FakeServer()
            clients: list[aioredis.Redis] = [FakeAsyncRedis(server=server) for _ in range(3)]
        else:
            port = request.getfixturevalue("redis_server").port
            clients = [aioredis.Redis(port=port) for _ in range(3)]
        for client in clients:
            await stack.enter_async_context(client)
        await clients[0].flushall()
        storages = [RedisStorage(client) for client in clients]
        for each in storages:
            stack.push_async_callback(each.close)
        yield Fleet([*storages], clients[0])


@pytest.fixture
def storage(fleet: Fleet) -> Storage:
    return fleet.storages[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(MemoryStorage(clock=clock))
