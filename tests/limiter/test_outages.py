"""Limiter in outages of Redis: fast answers, no unknown claims, and recovery."""

from __future__ import annotations

import asyncio
import logging
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

FAILED = "Redis rate limit check failed: "
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


@asynccontextmanager
async def hung_later(server: Server) -> AsyncIterator[tuple[aioredis.Redis, Limiter, Clock]]:
    """A server that hangs after its first decision."""
    async with aioredis.Redis(port=server.port) as client:
        clock = Clock()
        limiter = Limiter(RedisStorage(client), timeout=TIMEOUT, clock=clock)
        assert (await timed(limiter, 0))[0].source == "redis"
        limiter.timeout = 0.05
        server.hang()
        yield client, limiter, clock
        await limiter.close()


async def test_the_log_has_changes_and_not_updates(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for the outage, and one for its end."""
    async with hung_later(own_server) as (client, limiter, clock):
        with caplog.at_level(logging.INFO, "bot_ratelimit"):
            for _ in range(50):
                await asyncio.gather(*(timed(limiter, user) for user in range(4)))
                clock.move(0.25)
            lines = [(record.levelname, record.getMessage()) for record in caplog.records]
            own_server.resume()
            await client.ping()
            limiter.timeout = 1
            await decided_again(limiter, clock)
            await asyncio.gather(*(timed(limiter, user) for user in range(50)))
    assert [level for level, _ in lines] == ["ERROR"]
    server = f"localhost:{own_server.port}"
    assert all(text.startswith(f"{FAILED}no answer from {server} within") for _, text in lines)
    assert all("on_error='allow'" in text for _, text in lines)
    (back,) = [m for m in caplog.messages[len(lines) :] if "is alive, but took" not in m]
    assert "Redis answers again after " in back


async def test_a_cancelled_probe_leaves_its_place_to_the_next(own_server: Server) -> None:
    """If the probe is cancelled, the next hit is the probe."""
    async with hung_later(own_server) as (_, limiter, clock):
        for _ in range(5):
            await timed(limiter, 7)
        clock.move(LONGEST_PAUSE)
        limiter.timeout = 5
        probe = asyncio.create_task(timed(limiter, 7))
        await asyncio.sleep(0.01)
        assert (await timed(limiter, 7))[0].source == "policy"
        probe.cancel()
        await asyncio.wait([probe])
        own_server.resume()
        assert (await timed(limiter, 7))[0].source == "redis"
