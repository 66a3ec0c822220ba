"""Lines: whose connection it is, when, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import RedisStorage
from bot_ratelimit.storage import pool as pools
from bot_ratelimit.storage.link import link_to
from tests.benches import TIMEOUT, charge
from tests.servers import Server

PING = [(b"PING",)]


class Pool(aioredis.ConnectionPool):
    """A pool that counts how often a connection was asked for."""

    asked = 0

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        connection: Any = await super().get_connection(*args, **options)  # type: ignore[no-untyped-call]
        return connection

    @property
    def out(self) -> int:
        """How many connections are not in the pool."""
        return len(self._in_use_connections)


async def hit(storage: RedisStorage, name: str = "42") -> int:
    (verdict,) = await storage.hit([charge("999/minute", name)], timeout=TIMEOUT)
    return verdict.remaining


async def test_a_connection_is_kept_for_the_next_decision(redis_server: Server) -> None:
    """Decisions that follow one another ask the pool once in 32; `close` gives it back."""
    pool = Pool(port=redis_server.port)
    async with aioredis.Redis.from_pool(pool):
        storage = RedisStorage(aioredis.Redis(connection_pool=pool))
        before = await hit(storage)  # the server may not know the script before
        await storage.close()
        pool.asked = 0
        assert [await hit(storage) for _ in range(64)] == [before - 1 - i for i in range(64)]
        assert (pool.asked, pool.out) == (2, 0)
        await hit(storage)
        assert (pool.asked, pool.out) == (3, 1)
        await storage.close()
        assert pool.out == 0


async def test_what_is_not_used_goes_back(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is kept for a moment only, and the moment begins anew with each use."""
    monkeypatch.setattr(pools, "KEPT", 0.05)
    pool = Pool(port=redis_server.port)
    async with aioredis.Redis.from_pool(pool):
        link = link_to(aioredis.Redis(connection_pool=pool))
        for _ in range(3):
            await (await link.connect()).release()
        assert (pool.asked, pool.out) == (1, 1)
        async with asyncio.timeout(5):
            while pool.out:  # noqa: ASYNC110 - a connection goes back without telling
                await asyncio.sleep(0.01)
        await (await link.connect()).release()
        assert (pool.asked, pool.out) == (2, 1)
        await link.close()


async def test_what_ends_after_close_is_not_kept(redis_server: Server) -> None:
    """A decision under way when the storage is closed takes no connection with it."""
    pool = Pool(port=redis_server.port)
    async with aioredis.Redis.from_pool(pool):
        storage = RedisStorage(aioredis.Redis(connection_pool=pool))
        under_way = asyncio.create_task(hit(storage))
        await asyncio.sleep(0)
        await storage.close()
        await under_way
        assert (pool.asked, pool.out) == (1, 0)


async def test_nothing_is_written_for_no_commands(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty write would keep the event loop of Python 3.12 busy until the next one."""
    written: list[bytes] = []

    async def write(_: object, command: bytes, **__: object) -> None:
        written.append(command)

    async with aioredis.Redis(port=redis_server.port) as client:
        line = await link_to(client).connect()
        with monkeypatch.context() as patch:
            patch.setattr(aioredis.Connection, "send_packed_command", write)
            await line.send([])
        assert await line.receive(0) == []
        await line.release()
        assert written == []


async def test_a_connection_lost_with_replies_to_come_is_not_opened_anew(
    redis_server: Server,
) -> None:
    """Else the replies of what is sent next would be taken for those that were lost."""
    pool = Pool(port=redis_server.port)
    async with aioredis.Redis.from_pool(pool) as client:
        line = await link_to(client).connect()
        await line.send([(b"ECHO", b"first")])
        await pool.disconnect()
        with pytest.raises(aioredis.ConnectionError):
            await line.send([(b"ECHO", b"second")])
        await line.release()
        assert await client.echo("third") == b"third"
        assert pool.out == 0


@pytest.mark.parametrize("kind", ["small", "blocking"])
async def test_where_connections_are_scarce_none_is_kept(redis_server: Server, kind: str) -> None:
    """A pool of few connections, or one where callers wait, has all of them between decisions."""
    pool = (
        aioredis.ConnectionPool(port=redis_server.port, max_connections=2)
        if kind == "small"
        else aioredis.BlockingConnectionPool(port=redis_server.port)
    )
    async with aioredis.Redis.from_pool(pool) as client:
        await hit(RedisStorage(client))
        assert not pool._in_use_connections


async def test_a_kept_connection_has_its_own_timeout_back(redis_server: Server) -> None:
    """Whoever gets it next finds it as the client was made."""
    async with aioredis.Redis(port=redis_server.port, socket_timeout=7) as client:
        storage = RedisStorage(client)
        await hit(storage)
        await storage.close()
        pool: Any = client.connection_pool
        connection = await pool.get_connection()
        assert connection.socket_timeout == 7
        await pool.release(connection)


async def test_a_busy_limiter_leaves_others_the_only_connection(redis_server: Server) -> None:
    """Under a load that never ends, somebody else who waits for the pool's connection gets it."""
    pool = aioredis.BlockingConnectionPool(port=redis_server.port, max_connections=1, timeout=5)
    async with aioredis.Redis.from_pool(pool) as client:
        storage = RedisStorage(client)

        decided = 0

        async def flood(name: str) -> None:
            nonlocal decided
            while True:
                await hit(storage, name)
                decided += 1

        floods = [asyncio.create_task(flood(f"flood {n}")) for n in range(40)]
        try:
            async with asyncio.timeout(5):
                for _ in range(10):
                    await asyncio.sleep(0.005)
                    assert await client.ping()
            assert decided > 100
        finally:
            for task in floods:
                task.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            await storage.close()


async def test_a_line_that_was_not_heard_out_is_closed(redis_server: Server) -> None:
    """A reply that nobody took can never be taken for the next command's."""
    async with aioredis.Redis(port=redis_server.port) as client:
        link = link_to(client)
        line = await link.connect()
        await line.send([(b"ECHO", b"late")])
        await line.release()
        assert await client.echo("mine") == b"mine"
        line = await link.connect()
        await line.send(PING)
        assert await line.receive(1) in ([b"PONG"], ["PONG"])
        await line.release()
        await link.close()


async def test_a_line_that_is_cancelled_is_closed(redis_server: Server) -> None:
    """Those who follow a cancelled decision get their own answers."""
    async with aioredis.Redis(port=redis_server.port) as client:
        storage = RedisStorage(client)
        first = await hit(storage)
        for _ in range(20):
            task = asyncio.create_task(hit(storage))
            await asyncio.sleep(0)
            task.cancel()
            assert isinstance(
                (await asyncio.gather(task, return_exceptions=True))[0], BaseException
            )
            assert await hit(storage, "other") >= 0
        assert first - 21 <= await hit(storage) < first
        await storage.close()
