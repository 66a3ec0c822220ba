"""The private attributes of redis-py that we use still exist in the installed version."""

from __future__ import annotations

import ast
import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection

import bot_ratelimit
from bot_ratelimit.storage.redis import driver
from tests.servers import Server

GONE = f"redis-py {redis.__version__} has no {{}} any more, which storage/driver.py uses: {{}}"


def check(has: object, what: str, why: str) -> None:
    assert has, GONE.format(what, why)


async def test_attributes_of_a_connection(redis_server: Server) -> None:
    """An open connection has a reader and a transport that can be taken over."""
    async with aioredis.Redis(port=redis_server.port) as client:
        pool: Any = client.connection_pool
        check(hasattr(pool, "make_connection"), "ConnectionPool.make_connection", "to connect")
        check("port" in pool.connection_kwargs, "ConnectionPool.connection_kwargs", "its address")
        connection = pool.make_connection()
        for name in ("retry", "socket_timeout", "socket_connect_timeout"):
            check(hasattr(connection, name), f"Connection.{name}", "they are switched off")
        await connection.connect()
        for name in driver.PRIVATE:
            check(getattr(connection, name, None), f"Connection.{name}", "to take over")
        transport = connection._writer.transport
        check(hasattr(transport, "set_protocol"), "Connection._writer.transport", "to take over")
        check(hasattr(connection._reader, "at_eof"), "Connection._reader.at_eof", "to see an end")
        for name in ("send_command", "read_response"):
            check(hasattr(connection, name), f"Connection.{name}", "to ask the sentinels")
        await connection.disconnect()


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


def test_attributes_of_a_sentinel_pool() -> None:
    """A Sentinel pool has its service and its sentinels."""
    pool: Any = Sentinel([("127.0.0.1", 1)]).master_for("shop").connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    for name in ("is_master", "service_name", "sentinel_manager"):
        check(hasattr(pool, name), f"SentinelConnectionPool.{name}", "to ask the sentinels")
    for name in ("sentinels", "min_other_sentinels"):
        check(hasattr(pool.sentinel_manager, name), f"Sentinel.{name}", "to ask the sentinels")
    connection = pool.make_connection()
    check(hasattr(connection, "connect_to"), "SentinelManagedConnection.connect_to", "to connect")


def test_attributes_of_a_cluster() -> None:
    """A cluster client has its nodes and their connection options."""
    client: Any = RedisCluster(host="127.0.0.1", port=1)
    check(hasattr(client, "get_connection_kwargs"), "RedisCluster.get_connection_kwargs", "options")
    for name in ("startup_nodes", "nodes_cache", "remap_host_port"):
        check(hasattr(client.nodes_manager, name), f"NodesManager.{name}", "to find the nodes")
    node: Any = ClusterNode("127.0.0.1", 1, **client.get_connection_kwargs())
    for name in ("connection_class", "connection_kwargs"):
        check(hasattr(node, name), f"ClusterNode.{name}", "to connect as the client would")
    assert driver.startup_nodes(client) == [("127.0.0.1", 1)]
    check(Retry, "Retry", "to switch retries off")


def test_only_connections_of_redis_py_are_taken_over() -> None:
    """A connection with another `read_response` is no socket that could be taken over."""
    for owner in (AbstractConnection, SentinelManagedConnection):
        check("read_response" in vars(owner), f"{owner.__name__}.read_response", "to tell fakes")


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


@pytest.mark.parametrize("name", driver.PRIVATE)
def test_the_list_of_private_attributes_is_complete(name: str) -> None:
    """The list in driver.py equals what the file uses."""
    source = inspect.getsource(driver)
    assert f"connection.{name}" in source
