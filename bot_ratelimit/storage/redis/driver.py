"""What is used of redis-py: its clients, and its connections, which are used directly.

The clients' own commands are not used, because they may be repeated, and a repeated hit could be
charged twice. Private attributes of redis-py are used only in this file;
`tests/storage/test_driver.py` lists all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

import redis.asyncio as aioredis
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.redis.faults import ALLOW_SCRIPTS
from bot_ratelimit.storage.redis.wire import AdapterWire, SocketWire, Wire

Client: TypeAlias = "aioredis.Redis | RedisCluster"
Address: TypeAlias = tuple[str, int]

PRIVATE: Final = ("_reader", "_writer")
"""The private attributes of a redis-py connection that are used."""
_OWN_READ: Final = (AbstractConnection.read_response, SentinelManagedConnection.read_response)


class Endpoint:
    """A server, and how to connect to it as a pool of redis-py does.

    The pool makes the connection, with its credentials and TLS, but the connection does not belong
    to the pool: it does not matter whether the pool is small or exhausted.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        kwargs = pool.connection_kwargs
        address = f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"
        self.name: str = kwargs.get("path") or address
        """The permanent name: `host:port`, the path of a socket, or the name of a service."""
        self.where = self.name
        """The current address, for logs and errors."""

    def check(self) -> None:
        """Raise an error of redis-py if one of the options for connecting is wrong."""
        self._pool.make_connection()  # connects to nothing yet

    async def connect(self) -> Wire:
        """Open a connection; raise the error of redis-py or of the network."""
        connection = self._pool.make_connection()
        return await open_wire(connection, connection.connect)


def node_endpoint(client: RedisCluster, address: Address) -> Endpoint:
    """A node of a Redis Cluster, with the connection options of the cluster's client."""
    options: dict[str, Any] = client.get_connection_kwargs()
    node: Any = ClusterNode(*address, **options)
    return Endpoint(aioredis.ConnectionPool(node.connection_class, **node.connection_kwargs))


async def opened(connection: Any, connect: Callable[[], Awaitable[Any]]) -> None:
    """Open a connection of redis-py by calling `connect`.

    The connection's own retries and time-outs are switched off: retries would hide the reason of a
    failure, and the caller limits the time of the whole attempt.
    """
    connection.retry = Retry(NoBackoff(), 0)
    connection.socket_timeout = connection.socket_connect_timeout = None
    try:
        await connect()
    except BaseException:
        close(connection)
        raise


async def open_wire(connection: Any, connect: Callable[[], Awaitable[Any]]) -> Wire:
    """Open a connection of redis-py, or of a substitute for it, and return the wire over it."""
    await opened(connection, connect)
    reader, writer = connection._reader, connection._writer
    end = partial(close, connection)
    if _is_own(connection):
        return SocketWire(getattr(connection, "host", ""), writer.transport, reader.at_eof, end)
    return AdapterWire(connection, writer.writelines, end)


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


def key_space_of(client: Client) -> Hashable:
    """Return an equal value for clients that reach the same keys.

    Two clients with the same address and database use one server. The contents of redis-py's
    `connection_kwargs` are not documented: if they say too little, the pool itself is returned, so
    that only storages of one pool count as sharing.
    """
    if isinstance(client, RedisCluster):
        manager: Any = client.nodes_manager
        return ("cluster", *sorted(manager.startup_nodes))
    pool: Any = client.connection_pool
    options: dict[str, Any] = pool.connection_kwargs
    place = options.get("path") or options.get("host")
    if isinstance(pool, SentinelConnectionPool):
        name, sentinels, *_ = sentinels_of(pool)
        place = name, *sorted(Endpoint(each).name for each in sentinels)
    if "server" in options:  # fakeredis
        place = id(options["server"])
    if place is None:
        return id(pool)
    return place, int(options.get("port") or 6379), int(options.get("db") or 0)


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
    raise ConfigError(
        f"redis_client is {'the class' if kind is client else 'a'} {name}: expected a URL, an "
        "asynchronous client such as a redis.asyncio.Redis(...) or redis.asyncio.Redis.from_pool("
        "pool), or None for memory"
    )


def close(connection: Any) -> None:
    """Close a connection at once, in whatever state it or its event loop is."""
    writer = getattr(connection, "_writer", None)
    connection._reader = connection._writer = None  # else redis-py warns of a writer
    if writer is not None:
        with suppress(Exception):
            transport = getattr(writer, "transport", writer)
            (transport.abort if hasattr(transport, "abort") else transport.close)()
