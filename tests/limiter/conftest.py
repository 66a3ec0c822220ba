"""Two instances of a bot, on every storage."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bot_ratelimit import Limiter, RedisStorage, Subject
from tests.benches import Bench


@pytest.fixture
async def limiter(bench: Bench) -> AsyncIterator[Limiter]:
    limiter = Limiter(bench.storage, timeout=5)
    yield limiter
    await limiter.close()


@pytest.fixture
async def other(bench: Bench, limiter: Limiter) -> AsyncIterator[Limiter]:
    """Another instance that has already decided; with memory, on the same storage."""
    storage = bench.storage if bench.client is None else RedisStorage(bench.client)
    other = Limiter(storage, timeout=5)
    await other.hit("1000/s", Subject(user=1))
    yield other
    await other.close()
