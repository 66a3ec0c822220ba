"""`limiter.health()` and `limiter.check()`."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limiter, MemoryStorage, RedisStorage, StorageError, Subject
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.servers import Server, free_port

ANNA = Subject(user=42)


async def test_a_check_asks_the_server_and_charges_no_user(client: aioredis.Redis) -> None:
    """It takes a real round trip, reports its time, and leaves one key that soon expires.

    Without Redis there is no server to fail. `health` returns known state and sends nothing.
    """
    limiter, memory = Limiter(RedisStorage(client)), Limiter(MemoryStorage(1))
    assert (await limiter.health()).latency is None
    assert await client.keys() == []
    health = await limiter.check()
    assert health.ok
    assert health.latency is not None
    assert 0 < health.latency < 1
    [server] = health.servers
    assert (server.connected, server.breaker, server.out_for) == (True, "closed", None)
    assert (server.scripts, server.problem) == (True, "")
    assert server.latency is not None
    assert await client.keys() == [b"bot:ratelimit:check"]
    assert 0 < await client.pttl("bot:ratelimit:check") <= 1_000
    await limiter.close()
    await memory.hit("1/m", ANNA)
    health = await memory.check()
    assert (health.ok, health.ready, health.source, health.servers) == (True, True, "memory", ())
    assert not await memory.hit("1/m", ANNA)


@pytest.mark.parametrize(("policy", "ready"), [("allow", True), ("memory", True), ("deny", False)])
async def test_an_outage_is_reported(policy: object, ready: bool) -> None:
    """The problem is reported; whether the bot is ready depends on the policy."""
    storage = FlakyStorage()
    limiter = Limiter(storage, clock=Clock(), on_error=policy)  # type: ignore[arg-type]  # one of three
    storage.fail(StorageError("gone"))
    for _ in range(3):
        await limiter.hit("9/s", ANNA)
    for health in (await limiter.health(), await limiter.check()):
        assert (health.ok, health.ready, health.problem) == (False, ready, "gone")
    storage.heal()
    assert (await limiter.check()).ok
    assert not (await limiter.health()).ok  # no update has been decided yet


async def test_an_open_circuit_is_reported_with_its_duration() -> None:
    """The failing server is named with the fix and the time since it failed."""
    clock, port = Clock(), free_port()
    async with aioredis.Redis(port=port) as client:
        limiter = Limiter(RedisStorage(client), clock=clock)
        await limiter.hit("9/s", ANNA)
        async with asyncio.timeout(5):
            while not (await limiter.health()).problem:
                await asyncio.sleep(0.01)
                await limiter.hit("9/s", ANNA)
        clock.move(12.0)
        [server] = (await limiter.health()).servers
        assert (server.name, server.connected) == (f"localhost:{port}", False)
        assert server.out_for == 12.0
        assert "check that Redis is running" in server.problem
        await limiter.close()


async def test_a_check_detects_a_read_only_server(own_server: Server) -> None:
    """A call that writes detects a server that accepts no writes."""
    async with aioredis.Redis(port=own_server.port) as client:
        limiter = Limiter(RedisStorage(client), on_error="deny")
        assert (await limiter.check()).ready
        await client.config_set("min-replicas-to-write", 1)
        health = await limiter.check()
        assert (health.ok, health.ready) == (False, False)
        assert "NOREPLICAS" in health.problem
        await limiter.close()
