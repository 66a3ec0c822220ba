"""What is used of redis-py exists in the installed version, and works."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection

import bot_ratelimit
from bot_ratelimit.storage.redis import driver
from tests.servers import Server


def check(has: object, *names: str) -> None:
    for name in names:
        what = f"{type(has).__name__}.{name}, which storage/redis/driver.py uses"
        assert hasattr(has, name), f"redis-py {redis.__version__} has no {what}"


async def test_the_attributes_of_redis_py(redis_server: Server) -> None:
    """Connections can be taken over, sentinels and nodes of a cluster found."""
    async with aioredis.Redis(port=redis_server.port) as client:
        pool: Any = client.connection_pool
        check(pool, "make_connection", "connection_kwargs")
        assert "port" in pool.connection_kwargs
        connection = pool.make_connection()
        check(connection, "retry", "socket_timeout", "socket_connect_timeout")
        await connection.connect()
        check(connection, *driver.PRIVATE, "send_command", "read_response")
        check(connection._writer.transport, "set_protocol")
        check(connection._reader, "at_eof")
        await connection.disconnect()
    sentinel: Any = Sentinel([("127.0.0.1", 1)]).master_for("shop").connection_pool
    assert isinstance(sentinel, SentinelConnectionPool)
    check(sentinel, "is_master", "service_name", "sentinel_manager")
    check(sentinel.sentinel_manager, "sentinels", "min_other_sentinels")
    check(sentinel.make_connection(), "connect_to")
    cluster: Any = RedisCluster(host="127.0.0.1", port=1)
    check(cluster, "get_connection_kwargs", "nodes_manager")
    check(cluster.nodes_manager, "startup_nodes", "nodes_cache", "remap_host_port")
    node = ClusterNode("127.0.0.1", 1, **cluster.get_connection_kwargs())
    check(node, "connection_class", "connection_kwargs")
    # A connection with another `read_response` is no socket that could be taken over.
    for owner in (AbstractConnection, SentinelManagedConnection):
        assert "read_response" in vars(owner)


async def test_a_connection_that_has_ended_is_not_taken_over_silently(own_server: Server) -> None:
    """Who connects just before the server ends is told of it, though redis-py heard it first."""
    async with aioredis.Redis(port=own_server.port) as client:
        connection: Any = client.connection_pool.make_connection()
        wire = await driver.open_wire(connection, connection.connect)
        own_server.kill()
        await asyncio.sleep(0.05)
        lost = asyncio.get_running_loop().create_future()
        wire.attach(lambda reply: None, lost.set_result)
        assert "closed by server" in str(await asyncio.wait_for(lost, 5))
        wire.close()


@pytest.mark.parametrize("size", [1, 7, 1_000])
async def test_replies_may_arrive_in_pieces(size: int) -> None:
    """Replies are the same however the network cuts them; what nobody asked for is passed over."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"PING" not in (asked := await reader.read(1_000)):
            writer.write(b"-ERR unknown command\r\n" * asked.count(b"*"))
        said = b">2\r\n+news\r\n:1\r\n+PONG\r\n-MOVED 7 h:1\r\n*2\r\n:1\r\n$2\r\nab\r\n"
        for i in range(0, len(said), size):
            writer.write(said[i : i + size])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = aioredis.Redis(port=port, protocol=2)
        connection: Any = client.connection_pool.make_connection()
        wire = await driver.open_wire(connection, connection.connect)
        found: list[Any] = []
        lost = asyncio.get_running_loop().create_future()
        wire.attach(found.append, lost.set_result)
        wire.write(b"*1\r\n$4\r\nPING\r\n", 3)
        await asyncio.wait_for(lost, 5)
        assert [str(each) for each in found] == ["b'PONG'", "MOVED 7 h:1", "[1, b'ab']"]
        wire.close()
        await client.aclose()


def test_private_attributes_are_used_in_one_file() -> None:
    """No other module uses a private attribute of redis-py."""
    package = Path(bot_ratelimit.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "driver.py":
            continue
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if type(node) is ast.Attribute
        }
        assert not names & {*driver.PRIVATE, "nodes_manager", "sentinel_manager"}, path
