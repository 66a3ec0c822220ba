"""Limiter in outages of Redis: fast answers, no unknown claims, and recovery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Decision, Limiter, RedisStorage, Subject
from bot_ratelimit.storage.breaker import LONGEST_PAUSE
from bot_ratelimit.testing import Clock
from tests.benches import TIMEOUT, Pauses
from tests.servers import Server, black_hole, free_port

SLACK = 0.2
"""Seconds that a busy machine may add to a deadline, beside the pauses that it makes."""

Heal = Callable[[], Any]


@asynccontextmanager
async def hung(server: Server) -> AsyncIterator[tuple[aioredis.Redis, Heal]]:
    async with aioredis.Redis(port=server.port) as client:
        await client.ping()
        server.hang()
        yield client, server.resume


@asynccontextmanager
async def killed(server: Server) -> AsyncIterator[tuple[aioredis.Redis, Heal]]:
    async with aioredis.Redis(port=server.port) as client:
        await client.ping()
        server.kill()
        yield client, server.start


@asynccontextmanager
async def silent_from_the_start(server: Server) -> AsyncIterator[tuple[aioredis.Redis, None]]:
    async with black_hole() as port, aioredis.Redis(port=port) as client:
        yield client, None


@asynccontextmanager
async def never_there(server: Server) -> AsyncIterator[tuple[aioredis.Redis, None]]:
    async with aioredis.Redis.from_url(f"redis://127.0.0.1:{free_port()}") as client:
        yield client, None


@asynccontextmanager
async def out_of_memory(server: Server) -> AsyncIterator[tuple[aioredis.Redis, Heal]]:
    async with aioredis.Redis(port=server.port) as client:
        await client.config_set("maxmemory", 1)
        yield client, lambda: client.config_set("maxmemory", 0)


OUTAGES = [hung, killed, silent_from_the_start, never_there, out_of_memory]


async def timed(
    limiter: Limiter, user: int, pauses: Pauses | None = None
) -> tuple[Decision, float]:
    """A decision, and how many seconds it took without those in which the machine paused."""
    asked, paused = monotonic(), pauses.total if pauses else 0.0
    decision = await limiter.hit("3/minute", Subject(user=user))
    return decision, monotonic() - asked - (pauses.total - paused if pauses else 0.0)


async def decided_again(limiter: Limiter, clock: Clock, within: float = 3.0) -> Decision:
    """Wait for the first decision by Redis, under constant updates."""
    async with asyncio.timeout(within):
        while (decision := (await timed(limiter, 7))[0]).source != "redis":
            clock.move(0.01)
            await asyncio.sleep(0.01)
    return decision


@pytest.mark.parametrize("outage", OUTAGES)
async def test_no_decision_exceeds_the_timeout(own_server: Server, outage: Any) -> None:
    """Whatever is wrong with Redis, each decision is in time, alone or with others."""
    async with AsyncExitStack() as stack:
        client, heal = await stack.enter_async_context(outage(own_server))
        clock = Clock()
        limiter = Limiter(RedisStorage(client), timeout=0.1, clock=clock)
        with Pauses() as pauses:
            found = [await timed(limiter, user, pauses) for user in range(10)]
            clock.move(LONGEST_PAUSE)
            found += await asyncio.gather(*(timed(limiter, user, pauses) for user in range(50)))
        assert {(d.allowed, d.source, d.remaining) for d, _ in found} == {(True, "policy", 3)}
        assert max(seconds for _, seconds in found) < 0.1 + SLACK
        if heal is None:
            return
        await (heal() or asyncio.sleep(0))
        limiter.timeout = 1
        await decided_again(limiter, clock)
        healed = [(await timed(limiter, 99))[0] for _ in range(4)]
        assert [(d.allowed, d.source) for d in healed] == [
            *[(True, "redis")] * 3,
            (False, "redis"),
        ]


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "all at once"])
async def test_two_hundred_updates_while_redis_hangs(own_server: Server, together: bool) -> None:
    """All are handled within 0.6 s each and 3 s in total; limits work 6 s after the return."""
    async with hung(own_server) as (client, resume):
        limiter = Limiter(RedisStorage(client))
        began = monotonic()
        with Pauses() as pauses:
            if together:
                asking = (timed(limiter, user % 20, pauses) for user in range(200))
                found = await asyncio.gather(*asking)
            else:
                found = [await timed(limiter, user % 20, pauses) for user in range(200)]
        assert monotonic() - began < 3
        assert all(decision.allowed for decision, _ in found)
        assert max(seconds for _, seconds in found) < 0.6
        resume()
        async with asyncio.timeout(6):
            while (await timed(limiter, 7))[0].source != "redis":  # noqa: ASYNC110 - updates come
                await asyncio.sleep(0.02)
        limiter.timeout = TIMEOUT
        decisions = [(await timed(limiter, 8))[0] for _ in range(4)]
    assert [decision.allowed for decision in decisions] == [True, True, True, False]
