"""Foreign data under our keys: not touched, named in the log, and no effect on other hits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import ConfigError, RedisStorage
from bot_ratelimit.storage.base import Ask, Op
from tests.benches import TIMEOUT, charge

KEY = "bot:ratelimit:42"
TOKEN = "bot:ratelimit:once:a"
ALGORITHMS = ("", " sliding", " bucket")
FOREIGN: dict[str, Callable[[aioredis.Redis, str], Any]] = {
    "list": lambda client, key: client.rpush(key, "x"),
    "hash": lambda client, key: client.hset(key, "x", "y"),
    "set": lambda client, key: client.sadd(key, "x"),
    "text": lambda client, key: client.set(key, "hello", ex=60),
    "JSON without a TTL": lambda client, key: client.set(key, '{"user": 42}'),
    "fraction": lambda client, key: client.set(key, "3.5", ex=60),
    "padded": lambda client, key: client.set(key, "007", ex=60),
    "negative": lambda client, key: client.set(key, "-3", px=30_000),
    "leaderboard": lambda client, key: client.zadd(key, {"anna": 10, "7 1": 20}),
}


@pytest.fixture(params=["fakeredis", "redis-server"])
def server(request: pytest.FixtureRequest) -> Any:
    name = "fake_client" if request.param == "fakeredis" else "client"
    return request.getfixturevalue(name)


async def content(client: aioredis.Redis, key: str) -> tuple[Any, bool]:
    return await client.dump(key), await client.pttl(key) == -1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("foreign", FOREIGN)
async def test_foreign_data_is_not_changed(
    server: aioredis.Redis, foreign: str, algorithm: str
) -> None:
    """The error names the key; hits in the same batch are charged normally."""
    await FOREIGN[foreign](server, KEY)
    before, storage = await content(server, KEY), RedisStorage(server)
    one, other = charge(f"2/minute{algorithm}"), charge("2/minute", "b")
    calls = [
        storage.ask(Ask([charge("9/m", "first")]), timeout=TIMEOUT),
        storage.ask(Ask([one]), timeout=TIMEOUT),
        storage.ask(Ask([other, one], once=TOKEN), timeout=TIMEOUT),
        storage.ask(Ask([one], Op.PEEK), timeout=TIMEOUT),
        storage.ask(Ask([one], Op.RESET), timeout=TIMEOUT),
        storage.ask(Ask([charge("9/m", "last")]), timeout=TIMEOUT),
    ]
    first, *broken, last = await asyncio.gather(*calls, return_exceptions=True)
    for error in broken:
        assert isinstance(error, ConfigError)
        assert f"'{KEY}'" in str(error)
        assert "choose another key_prefix" in str(error)
    assert (first, last) == ([(0, 8, 60_000_000)],) * 2
    assert await content(server, KEY) == before
    assert not await server.exists("bot:ratelimit:b", TOKEN)


@pytest.mark.parametrize("kept", ["", "0 1 60000000 5", "hello", "0 1 6e7", "-1 0 0"])
async def test_a_bad_shared_verdict_affects_only_its_hit(server: aioredis.Redis, kept: str) -> None:
    """A verdict with too few or too many numbers is an error of that hit only."""
    await server.set(TOKEN, kept, ex=60)
    storage = RedisStorage(server)
    found = await asyncio.gather(
        storage.ask(Ask([charge("9/m", "first")]), timeout=TIMEOUT),
        storage.ask(Ask([charge("7/m")], once=TOKEN), timeout=TIMEOUT),
        storage.ask(Ask([charge("5/m", "last")]), timeout=TIMEOUT),
        return_exceptions=True,
    )
    assert isinstance(found[1], ConfigError)
    assert TOKEN in str(found[1])
    assert [found[0][0].remaining, found[2][0].remaining] == [8, 4]
    assert not await server.exists(KEY)


async def test_only_whole_numbers_leave_the_script(server: aioredis.Redis) -> None:
    """However long the period and large the amount, every answer is exact."""
    storage = RedisStorage(server)
    limits = ["1000000/366d", "1000000/366d sliding", "1/366d burst 100", "1000000/d burst 999999"]
    charges = [charge(limit, f"{i}") for i, limit in enumerate(limits)]
    verdicts = await storage.ask(Ask(charges), timeout=TIMEOUT)
    assert [verdict.remaining for verdict in verdicts] == [999_999, 999_999, 99, 999_998]
    year = 366 * 86_400_000_000
    assert [verdict.reset for verdict in verdicts] == [year, year, year, 86_400]
