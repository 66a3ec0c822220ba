"""`limiter.health()` and `limiter.check()`."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limiter, MemoryStorage, RedisStorage, StorageError, Subject
from bot_ratelimit.storage.redis import codec
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.servers import Server, free_port

ANNA = Subject(user=42)


async def test_memory_is_always_healthy() -> None:
    """Without Redis there is no server to fail, and a test call charges no user."""
    limiter = Limiter(MemoryStorage(1))
    await limiter.hit("1/m", ANNA)
    health = await limiter.check()
    assert (health.ok, health.ready, health.source, health.servers) == (True, True, "memory", ())
    assert not await limiter.hit("1/m", ANNA)


async def test_a_check_asks_the_server_and_charges_no_user(client: aioredis.Redis) -> None:
    """It takes a real round trip, reports its time, and leaves one key that soon expires."""
    limiter = Limiter(RedisStorage(client))
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


async def test_health_sends_no_request() -> None:
    """`health` returns known state; only `check` makes a call."""
    storage = FlakyStorage()
    limiter = Limiter(storage)
    assert (await limiter.health()).latency is None
    assert storage.calls == 0
    await limiter.check()
    assert storage.calls == 1


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


async def test_a_rule_that_needs_a_refused_script_shows(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where scripts are refused, fixed windows are well; a rule that needs one is a problem."""
    monkeypatch.setattr(codec, "TRY_SCRIPTS_AGAIN", 0.1)
    async with aioredis.Redis(port=own_server.port) as admin:
        allow = ("ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all")
        await admin.execute_command(*allow, "-@scripting")
        client = aioredis.Redis(port=own_server.port, username="worker", password="pw")
        storage, clock = RedisStorage(client, close_client=True), Clock()
        limiter = Limiter(storage, on_error="deny", timeout=5, clock=clock)
        assert await limiter.hit("9/m", ANNA)
        health = await limiter.check()
        assert (health.ok, health.problem, health.servers[0].scripts) == (True, "", False)
        await limiter.hit("9/m sliding", ANNA)
        for health in (await limiter.check(), await limiter.health()):
            assert (health.ok, health.ready) == (False, False)
            assert "a sliding window (9/minute sliding) needs a script" in health.problem
            assert health.servers[0].problem == health.problem
        await admin.execute_command(*allow)
        await asyncio.sleep(0.11)
        clock.move(60)
        assert await limiter.hit("9/m sliding", ANNA)
        for health in (await limiter.check(), await limiter.health()):
            assert (health.ok, health.problem, health.servers[0].scripts) == (True, "", True)
        await limiter.close()
