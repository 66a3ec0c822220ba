"""Slots, bans and documents on a server: what they share with the counts there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis.asyncio.sentinel import Sentinel

from bot_ratelimit import (
    ConfigError,
    Limiter,
    Observer,
    Penalty,
    RedisStorage,
    StorageError,
    Subject,
)
from bot_ratelimit.storage import deadline
from bot_ratelimit.storage.leases import Claim
from bot_ratelimit.storage.loops import Ticker
from bot_ratelimit.storage.redis import scripts
from bot_ratelimit.storage.redis import storage as redis_storage
from bot_ratelimit.storage.redis.scripts import Script
from bot_ratelimit.testing import Clock
from tests.benches import TIMEOUT, eventually
from tests.servers import Server

USER = Subject(user=42)


async def test_a_primary_that_became_a_replica_is_left(own_server: Server) -> None:
    """Also by a bot that only asks for slots: the next connection may lead to the new primary."""
    events = list[str]()

    class Connections(Observer):
        def connected(self, server: str) -> None:
            events.append("connected")

        def disconnected(self, server: str) -> None:
            events.append("disconnected")

    storage, claim = RedisStorage(own_server.url), Claim("bot:ratelimit:slot:42", "a", 1, 30)
    storage.observe(Connections())
    async with aioredis.Redis(port=own_server.port) as client:
        await storage.leases().claim("acquire", claim, timeout=TIMEOUT)
        await client.replicaof("127.0.0.1", str(own_server.port))  # type: ignore[no-untyped-call] # of redis-py
        with pytest.raises(StorageError, match="READONLY") as caught:
            await storage.leases().claim("renew", claim, timeout=TIMEOUT)
    assert caught.value.kind == "readonly"
    await eventually(lambda: events == ["connected", "disconnected", "connected"])
    await storage.close()


async def test_a_lost_script_takes_no_second_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt has the rest of the time, and 0.3 of it if the loop was busy."""
    clock, given, took = Clock(), list[float](), [0.1, 0.1, 9.0, 0.1]
    for module in (scripts, deadline):
        monkeypatch.setattr(module, "time", type("Time", (), {"monotonic": clock}))

    async def execute(command: Any, *, key: str, timeout: float) -> None:
        given.append(timeout)
        clock.move(took[len(given) - 1])
        if len(given) % 2:
            error = ConfigError("NOSCRIPT")
            error.kind = "noscript"
            raise error

    for _ in range(2):
        await Script("return 1").run(execute, ["key"], timeout=0.25)
    assert given == pytest.approx([0.25, 0.15, 0.25, 0.075])


async def test_bans_are_evicted_last(client: aioredis.Redis) -> None:
    """The keys of the list live longer than any count; a ban without its details can be lifted."""
    limiter = Limiter(RedisStorage(client), timeout=TIMEOUT)
    await limiter.ban(USER, 60, "spam")
    names = [f"bot:ratelimit:{{bans}}:{part}" for part in ("ends", "details", "hand")]
    assert [await client.ttl(name) > 9 * 365 * 86_400 for name in names] == [True] * 3
    await client.delete(names[1])
    (ban,) = await limiter.bans()
    assert (ban.subject, ban.reason) == (USER, "")
    assert await limiter.unban(USER)
    assert await limiter.bans() == []
    await limiter.close()


async def test_bans_that_cannot_be_listed_are_logged_once(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """In an outage with `on_error="memory"`, a raid does not fill the log."""
    limiter = Limiter(RedisStorage(own_server.url), on_error="memory")
    own_server.kill()
    for user in range(5):
        for _ in range(3):
            await limiter.hit(["1/h", Penalty("1/h", "1h")], Subject(user=user))
    await limiter.close()
    assert sum("could not be written" in message for message in caplog.messages) == 1


async def test_only_what_the_storage_made_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client from a URL, and one that was handed over; others belong to the bot."""
    closed = list[str]()

    class Noting(aioredis.Redis):
        async def aclose(self, close_connection_pool: bool | None = None) -> None:
            closed.append("closed")

    monkeypatch.setattr(redis_storage, "client_given_as", lambda url: Noting())
    for storage, times in (
        (RedisStorage("redis://"), 1),
        (RedisStorage(Noting(), close_client=True), 2),
        (RedisStorage(Noting()), 2),
    ):
        await storage.close()
        assert len(closed) == times


def test_deployments_of_sentinels_are_told_apart() -> None:
    """Two of them may use one name of a service, as `mymaster`; the order of hosts says nothing."""

    def space(*hosts: str) -> object:
        sentinel: Any = Sentinel([(host, 26379) for host in hosts])
        return RedisStorage(sentinel.master_for("mymaster")).key_space

    assert space("10.0.0.1", "10.0.0.2") == space("10.0.0.2", "10.0.0.1")
    assert space("10.0.0.1") != space("10.0.0.9")


async def test_a_ticker_that_ends_just_now_begins_again() -> None:
    """Work that comes in the turn in which the last call has ended is not left for the next one."""

    class Owner:
        calls = 0

        def __init__(self) -> None:
            self.ticker = Ticker(self.work, 0.001)

        async def work(self) -> bool:
            self.calls += 1
            if self.calls == 1:
                asyncio.get_running_loop().call_soon(self.ticker.start)
            return False

    owner = Owner()
    owner.ticker.start()
    await eventually(lambda: owner.calls == 2 and owner.ticker._task is None)
    assert not await owner.ticker.stop()  # it has ended by itself
    owner.ticker.start()
    assert await owner.ticker.stop()
    await asyncio.sleep(0.01)
    assert owner.calls == 2
