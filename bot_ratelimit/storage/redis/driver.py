"""What is used of redis-py: its clients, and its connections, which are used directly.

The clients' own commands are not used, because they may be repeated, and a repeated hit could be
charged twice. Private attributes of redis-py are used only in this file;
`tests/storage/test_driver.py` lists all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.redis.faults import ALLOW_SCRIPTS, is_cut_short
from bot_ratelimit.storage.redis.wire import AdapterWire, SocketWire, Wire

Client: TypeAlias = "aioredis.Redis | RedisCluster"
Address: TypeAlias = tuple[str, int]

PRIVATE: Final = ("_reader", "_writer")
"""The private attributes of a redis-py connection that are used."""
HEAR_OUT: Final = 0.2
"""Seconds in which a server that ends connections at once has to say why."""
_ERROR_SIZE: Final = 1_000
_OWN_READ: Final = (AbstractConnection.read_response, SentinelManagedConnection.read_response)


class Endpoint(Protocol):
    """A server address, and how to connect to it."""

    @property
    def name(self) -> str:
        """The permanent name: `host:port`, the path of a socket, or the name of a service."""
        ...

    @property
    def where(self) -> str:
        """The current address, for logs and errors."""
        ...

    async def connect(self) -> Wire:
        """Open a connection.

        Raises:
            Exception: The error of redis-py or of the network.
        """
        ...


class PoolEndpoint:
    """The server of a client's connection pool.

    The pool makes the connection, with its credentials and TLS, but the connection does not belong
    to the pool: it does not matter whether the pool is small or exhausted.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        kwargs = pool.connection_kwargs
        host, port = kwargs.get("host", "localhost"), kwargs.get("port", 6379)
        self.name: str = kwargs.get("path") or f"{host}:{port}"
        self.where = self.name

    def make_connection(self) -> Any:
        """Make a connection of redis-py that is not open yet."""
        return self._pool.make_connection()

    async def connect(self) -> Wire:
        """See `Endpoint.connect`."""
        connection = self.make_connection()
        return await open_wire(connection, connection.connect)


class NodeEndpoint(PoolEndpoint):
    """A node of a Redis Cluster, with the connection options of the cluster's client."""

    def __init__(self, client: RedisCluster, address: Address) -> None:
        self._client = client
        self._address = address
        self.name = self.where = "{}:{}".format(*address)

    def make_connection(self) -> Any:
        """See `PoolEndpoint.make_connection`."""
        kwargs: dict[str, Any] = self._client.get_connection_kwargs()
        node: Any = ClusterNode(*self._address, **kwargs)
        return node.connection_class(**node.connection_kwargs)


async def opened(connection: Any, connect: Callable[[], Awaitable[Any]]) -> None:
    """Open a connection of redis-py by calling `connect`.

    The connection's own retries and time-outs are switched off: retries would hide the reason of a
    failure, and the caller limits the time of the whole attempt.
    """
    connection.retry = Retry(NoBackoff(), 0)
    connection.socket_timeout = connection.socket_connect_timeout = None
    try:
        await connect()
    except BaseException as error:
        close(connection)
        if isinstance(error, Exception) and is_cut_short(error):
            reason = await _turned_away(connection)
            if reason:
                raise exceptions.ConnectionError(reason) from error
        raise


async def open_wire(connection: Any, connect: Callable[[], Awaitable[Any]]) -> Wire:
    """Open a connection of redis-py, or of a substitute for it, and return the wire over it."""
    await opened(connection, connect)
    reader, writer = connection._reader, connection._writer
    end = partial(close, connection)
    if _is_own(connection):
        return SocketWire(getattr(connection, "host", ""), writer.transport, reader.at_eof, end)
    return AdapterWire(connection, writer.writelines, end)


async def _turned_away(connection: Any) -> str:
    """Return why the server closes connections at once, for example maxclients; empty if unknown.

    The server sends the reason without being asked. But redis-py has already written by then, and
    often gets only a reset. So this opens a connection that reads and writes nothing.
    """
    if isinstance(connection, aioredis.SSLConnection) or not _is_own(connection):
        return ""
    path = getattr(connection, "path", None)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(HEAR_OUT):
            reader, writer = await (
                asyncio.open_unix_connection(path)
                if path
                else asyncio.open_connection(connection.host, connection.port)
            )
            try:
                said = await reader.read(_ERROR_SIZE)
            finally:
                writer.transport.abort()
        if said.startswith(b"-"):
            return said[1:].decode(errors="replace").partition("\r\n")[0]
    return ""


def _is_own(connection: Any) -> bool:
    """Whether this is a connection of redis-py itself, not of a substitute such as fakeredis."""
    return type(connection).read_response in _OWN_READ


def cancel_opening(task: asyncio.Task[Wire]) -> None:
    """Cancel an attempt to connect; if it succeeds nevertheless, its connection is closed."""
    task.cancel()
    task.add_done_callback(_close_opened)


def _close_opened(task: asyncio.Task[Wire]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def how_to_allow_scripts(client: Client) -> str:
    """What to do if this client's server refuses scripts."""
    if type(client).__module__.startswith("fakeredis"):
        return "install fakeredis[lua] (pip install 'fakeredis[lua]')"
    return ALLOW_SCRIPTS


def startup_nodes(client: RedisCluster) -> list[Address]:
    """The nodes that the cluster client was given or has found."""
    manager: Any = client.nodes_manager
    nodes = [*manager.startup_nodes.values(), *manager.nodes_cache.values()]
    return list(dict.fromkeys((node.host, int(node.port)) for node in nodes))


def remap(client: RedisCluster, address: Address) -> Address:
    """Return the address at which this machine reaches a node that announces this address."""
    manager: Any = client.nodes_manager
    host, port = manager.remap_host_port(*address)
    return host, int(port)


def sentinels_of(pool: SentinelConnectionPool) -> tuple[str, Sequence[Any], int, str | None]:
    """The service name, the sentinels' pools, the peers each must see, and a forced IP."""
    manager: Any = pool.sentinel_manager
    pools = [client.connection_pool for client in manager.sentinels]
    forced = getattr(manager, "_force_master_ip", None)
    return pool.service_name, pools, manager.min_other_sentinels, forced


def check_client(client: object) -> None:
    """Raise ConfigError unless this is an asynchronous client of redis-py."""
    if isinstance(client, RedisCluster):
        return
    if isinstance(client, Redis):
        pool: Any = client.connection_pool
        if isinstance(pool, SentinelConnectionPool) and not pool.is_master:
            raise ConfigError(
                "redis_client connects to read-only replicas: pass sentinel.master_for(...)"
            )
        return
    kind = client if isinstance(client, type) else type(client)
    name = f"{kind.__module__}.{kind.__qualname__}"
    told, fix = f"a {name}", "pass a URL, a redis.asyncio.Redis, or None for memory"
    if isinstance(client, type) and issubclass(client, (Redis, RedisCluster)):
        told, fix = f"the class {name}", f"pass a client, redis.asyncio.{kind.__name__}(...)"
    elif isinstance(client, aioredis.ConnectionPool):
        told, fix = "a ConnectionPool", "pass redis.asyncio.Redis.from_pool(pool)"
    elif name.startswith("redis.") and not name.startswith("redis.asyncio"):
        told = f"a synchronous {name}, which would block the bot"
        fix = "pass a redis.asyncio.Redis (from redis.asyncio import Redis)"
    raise ConfigError(f"redis_client is {told}: {fix}")


def close(connection: Any) -> None:
    """Close a connection at once, in whatever state it or its event loop is."""
    writer = getattr(connection, "_writer", None)
    connection._reader = connection._writer = None  # else redis-py warns of a writer
    if writer is not None:
        with suppress(Exception):
            transport = getattr(writer, "transport", writer)
            (transport.abort if hasattr(transport, "abort") else transport.close)()
