"""What is used of redis-py: its clients, and its connections, which are spoken to directly.

The clients' own commands are not used, because they may be repeated, and a repeated hit would be
charged twice. Every attribute of redis-py that is not public is used in this file and nowhere else;
`tests/storage/test_driver.py` names each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeAlias

import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff

from bot_ratelimit.errors import ConfigError

Client: TypeAlias = "aioredis.Redis | RedisCluster"
Address: TypeAlias = tuple[str, int]

PRIVATE: Final = ("_reader", "_writer", "_parser")
"""The attributes of a redis-py connection that are used although they are not public."""
_OWN_READ: Final = (AbstractConnection.read_response, SentinelManagedConnection.read_response)


class Stream:
    """An open connection. Commands are written at once; replies are read in their order."""

    __slots__ = ("_connection", "_read", "_reader", "_writer")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._reader, self._writer = connection._reader, connection._writer
        # The connection's own method would cost more than parsing; fakeredis has no parser.
        is_plain = type(connection).read_response in _OWN_READ
        self._read = (connection._parser if is_plain else connection).read_response

    def write(self, packed: bytes) -> None:
        """Write commands that are encoded already; never waits."""
        self._writer.writelines((packed,))

    async def read(self) -> Any:
        """The next reply; an error that the server replies with is returned, not raised.

        Raises:
            Exception: The connection is broken.
        """
        try:
            return await self._read(disable_decoding=True)
        except exceptions.ResponseError as error:
            return error

    @property
    def host(self) -> str:
        """The host that is connected to; nothing for a socket's path."""
        return str(getattr(self._connection, "host", ""))

    @property
    def is_closed(self) -> bool:
        """Whether the server, or something on the way to it, has closed the connection."""
        return bool(self._reader.at_eof()) or self._connection._reader is None

    def close(self) -> None:
        """Close the connection, without waiting for anything."""
        _close(self._connection)


class Endpoint(Protocol):
    """Where a connection leads, and how it is opened."""

    @property
    def name(self) -> str:
        """What it is called as long as it lives: `host:port`, a socket's path, a service."""
        ...

    @property
    def where(self) -> str:
        """Where it is now, as logs and errors put it."""
        ...

    async def connect(self) -> Stream:
        """Open a connection.

        Raises:
            Exception: Whatever went wrong, as redis-py or the network words it.
        """
        ...


class PoolEndpoint:
    """The server that the connections of a client's pool lead to.

    The connection is made by the pool, with its credentials and TLS, but is not one of the pool's:
    a pool that is small or exhausted does not matter here.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        kwargs = pool.connection_kwargs
        host, port = kwargs.get("host", "localhost"), kwargs.get("port", 6379)
        self.name: str = kwargs.get("path") or f"{host}:{port}"
        self.where = self.name

    async def connect(self) -> Stream:
        """See `Endpoint.connect`."""
        connection = self._pool.make_connection()
        return await open_stream(connection, connection.connect)


class NodeEndpoint:
    """A node of a Redis Cluster, connected to as the cluster's client would."""

    def __init__(self, client: RedisCluster, address: Address) -> None:
        self._client = client
        self._address = address
        self.name = self.where = "{}:{}".format(*address)

    async def connect(self) -> Stream:
        """See `Endpoint.connect`."""
        kwargs: dict[str, Any] = self._client.get_connection_kwargs()
        node: Any = ClusterNode(*self._address, **kwargs)
        connection = node.connection_class(**node.connection_kwargs)
        return await open_stream(connection, connection.connect)


async def open_stream(connection: Any, connect: Callable[[], Awaitable[Any]]) -> Stream:
    """A stream over this redis-py connection, which `connect` opens.

    The connection's own retries and time-outs are switched off: retries would hide the reason of
    a failure, and the owner of the stream has a bound for connecting as a whole.
    """
    connection.retry = Retry(NoBackoff(), 0)
    connection.socket_timeout = connection.socket_connect_timeout = None
    try:
        await connect()
        return Stream(connection)
    except BaseException:
        _close(connection)
        raise


def cancel_opening(task: asyncio.Task[Stream]) -> None:
    """Connect no longer; a connection that is open by then is closed."""
    task.cancel()
    task.add_done_callback(_close_opened)


def _close_opened(task: asyncio.Task[Stream]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def startup_nodes(client: RedisCluster) -> list[Address]:
    """The nodes that the client of a cluster was told of, or has found."""
    manager: Any = client.nodes_manager
    nodes = [*manager.startup_nodes.values(), *manager.nodes_cache.values()]
    return list(dict.fromkeys((node.host, int(node.port)) for node in nodes))


def remap(client: RedisCluster, address: Address) -> Address:
    """The address under which this machine reaches a node that names itself so."""
    manager: Any = client.nodes_manager
    host, port = manager.remap_host_port(*address)
    return host, int(port)


def sentinels_of(pool: SentinelConnectionPool) -> tuple[str, Sequence[Any], int, str | None]:
    """The service's name, the pools of its sentinels, how many peers each must see, a forced IP."""
    manager: Any = pool.sentinel_manager
    pools = [client.connection_pool for client in manager.sentinels]
    forced = getattr(manager, "_force_master_ip", None)
    return pool.service_name, pools, manager.min_other_sentinels, forced


def check_client(client: object) -> None:
    """Raise ConfigError unless this is an asynchronous client of redis-py."""
    if isinstance(client, RedisCluster):
        return
    if isinstance(client, aioredis.Redis):
        pool: Any = client.connection_pool
        if isinstance(pool, SentinelConnectionPool) and not pool.is_master:
            raise ConfigError(
                "redis_client asks replicas, which cannot count: pass sentinel.master_for(...)"
            )
        return
    kind = client if isinstance(client, type) else type(client)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(client, str):
        # The value is not repeated: a URL may hold a password.
        raise ConfigError("redis_client is a str: pass redis.asyncio.Redis.from_url(...)")
    if isinstance(client, type) and issubclass(client, (aioredis.Redis, RedisCluster)):
        raise ConfigError(
            f"redis_client is the class {name}: pass a client, redis.asyncio.{kind.__name__}(...)"
        )
    if isinstance(client, aioredis.ConnectionPool):
        raise ConfigError(
            "redis_client is a ConnectionPool: pass redis.asyncio.Redis.from_pool(pool)"
        )
    if name.startswith("redis.") and not name.startswith("redis.asyncio"):
        raise ConfigError(
            f"redis_client is a synchronous {name}, which would block the bot: "
            "pass a redis.asyncio.Redis (from redis.asyncio import Redis)"
        )
    raise ConfigError(f"redis_client is a {name}: pass a redis.asyncio.Redis, or None for memory")


def _close(connection: Any) -> None:
    """Close it at once and for certain, whatever state it or its event loop is in."""
    writer = getattr(connection, "_writer", None)
    connection._reader = connection._writer = None  # redis-py warns of a writer that is left
    if writer is not None:
        with suppress(Exception):
            transport = getattr(writer, "transport", writer)
            (transport.abort if hasattr(transport, "abort") else transport.close)()
