"""Fixtures: a bot on memory or on a real Redis, with its page on loopback, and its visitors."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import MemoryStorage, RedisStorage
from bot_ratelimit.storage.base import Storage
from tests.servers import Server

from .web import Site, Visitor, bot_on, running_bot, site


@pytest.fixture
async def found() -> AsyncIterator[Site]:
    """The page of a bot on memory."""
    async with site(bot_on(MemoryStorage())) as found:
        yield found


@pytest.fixture
async def visitor(found: Site) -> AsyncIterator[Visitor]:
    """Somebody with a browser, who is not logged in."""
    async with found.visitor() as visitor:
        yield visitor


@pytest.fixture
async def script(found: Site) -> AsyncIterator[Visitor]:
    """A program that shows the token."""
    async with found.script() as script:
        yield script


@pytest.fixture
async def shared(client: aioredis.Redis) -> AsyncIterator[RedisStorage]:
    """A storage on the Redis of the whole run, emptied."""
    storage = RedisStorage(client)
    yield storage
    await storage.close()


@pytest.fixture(params=["memory", "redis-server"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Memory, or a real Redis."""
    if request.param == "memory":
        return MemoryStorage()
    found: RedisStorage = request.getfixturevalue("shared")
    return found


@pytest.fixture
async def own_client(own_server: Server) -> AsyncIterator[aioredis.Redis]:
    """A client of `own_server`."""
    async with aioredis.Redis(port=own_server.port) as client:
        yield client


@pytest.fixture
async def own(own_client: aioredis.Redis) -> AsyncIterator[RedisStorage]:
    """A storage on `own_server`."""
    storage = RedisStorage(own_client)
    yield storage
    await storage.close()


@pytest.fixture
async def running(storage: Storage) -> AsyncIterator[Site]:
    """A bot that runs, on memory and on a real Redis, and its page; at version 1."""
    async with running_bot(storage, version=1) as found:
        yield found
