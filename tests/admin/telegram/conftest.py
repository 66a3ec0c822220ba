"""Fixtures: a bot whose operators use Telegram, on memory and on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import MemoryStorage, RedisStorage
from bot_ratelimit.admin.control import Control
from bot_ratelimit.storage.base import Storage
from tests.admin.telegram.operators import OperatedBot, operated_bot_on
from tests.servers import Server


@pytest.fixture
async def elsewhere(storage: Storage, request: pytest.FixtureRequest) -> AsyncIterator[Storage]:
    """What another instance has: a connection of its own to the same Redis."""
    if isinstance(storage, MemoryStorage):
        yield storage
        return
    server: Server = request.getfixturevalue("redis_server")
    async with aioredis.Redis(port=server.port) as client:
        other = RedisStorage(client)
        yield other
        await other.close()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instances look for changes, and operators for lost documents, without waiting seconds."""
    monkeypatch.setattr("bot_ratelimit.config.live.EVERY", 0.02)
    defaults = Control.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "patience", 0.0)


@pytest.fixture
async def bot() -> AsyncIterator[OperatedBot]:
    """On memory: for what does not depend on a storage."""
    async with operated_bot_on(MemoryStorage()) as bot:
        yield bot
