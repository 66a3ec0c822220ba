"""Link: one attempt at some commands, on a connection of whatever client the user has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, cast

import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage import wire
from bot_ratelimit.storage.wire import Command, Hit

Client: TypeAlias = "aioredis.Redis | RedisCluster"


class Link(Protocol):
    """One attempt at some commands on one connection, whatever the client."""

    def lane(self, hit: Hit) -> int:
        """Hits of one lane may travel in one command."""

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """The reply to each command; errors of the server are replies too."""

    async def reconnect(self) -> None:
        """Connect anew from now on."""


class _Connection(Protocol):
    """What we need of a redis-py connection."""

    socket_timeout: float | None

    async def send_packed_command(self, command: bytes) -> None: ...
    async def read_response(self) -> Any: ...
    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool = False) -> None: ...


class _ConnectionPool(Protocol):
    """What we need of a redis-py connection pool; the same from redis-py 6.4 to 8."""

    async def get_connection(self) -> _Connection: ...
    async def release(self, connection: _Connection) -> None: ...
    async def disconnect(self, inuse_connections: bool = True) -> None: ...


class _Pool:
    """Speaks on a pool's connections directly, since the client's own commands may be retried."""

    def __init__(self, pool: _ConnectionPool) -> None:
        self._pool = pool

    def lane(self, hit: Hit) -> int:
        return 0

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        if not commands:
            return []
        connection = await self._pool.get_connection()
        # The storage has a deadline for all of it; redis-py's own time-out for each step would cost
        # more than the decision. The connection is ours alone until it is released.
        socket_timeout, connection.socket_timeout = connection.socket_timeout, None
        try:
            if _is_stale(connection):
                await connection.disconnect(nowait=True)
                await connection.connect()
            await connection.send_packed_command(b"".join(map(wire.encode, commands)))
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except exceptions.ResponseError as error:
                    replies.append(error)
        except BaseException:  # also when cancelled: a late reply must not meet the next command
            await connection.disconnect(nowait=True)
            raise
        finally:
            connection.socket_timeout = socket_timeout
            await self._pool.release(connection)
        return replies

    async def reconnect(self) -> None:
        await self._pool.disconnect(inuse_connections=False)


def _is_stale(connection: _Connection) -> bool:
    """Whether the server has closed the connection while it was idle.

    The pool looks for that too, but redis-py 8 leaves it be if it speaks RESP3.
    """
    reader = getattr(connection, "_reader", None)
    return isinstance(reader, asyncio.StreamReader) and reader.at_eof()


class _Cluster:
    """Speaks to the node that has the key, since the client's own commands are retried."""

    def __init__(self, client: RedisCluster) -> None:
        self._client = client
        self._lost = False

    def lane(self, hit: Hit) -> int:
        # Only keys of one slot can be decided together.
        return int(self._client.keyslot(hit.charges[0].key))

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = []
        for command in commands:
            if command[0] == b"MULTI":
                raise ConfigError("a Redis Cluster needs scripts: allow EVALSHA and EVAL on it")
            try:
                replies.append(await self._attempt(command))
            except (exceptions.ClusterError, exceptions.AskError, exceptions.TryAgainError):
                # Nothing has run on that node. The client follows the slot to where it is now.
                name, *arguments = command
                replies.append(await self._client.execute_command(name.decode(), *arguments))
            except exceptions.ResponseError as error:
                replies.append(error)
        return replies

    async def reconnect(self) -> None:
        """Ask the cluster who has which slots before the next command."""
        self._lost = True

    async def _attempt(self, command: Command) -> Any:
        await self._client.initialize()
        if self._lost:
            await cast(Any, self._client.nodes_manager).initialize()
            self._lost = False
        key = command[1] if command[0] == b"DEL" else command[3]
        node = cast(Any, self._client.get_node_from_key(key.decode()))
        try:
            return await node.execute_command(command[0].decode(), *command[1:])
        except BaseException as error:
            # Whoever was answered, if only by an error, still has its node.
            self._lost = not isinstance(error, exceptions.ResponseError)
            raise


def link_to(client: object) -> Link:
    """The link over this client.

    Raises:
        ConfigError: It is no asynchronous client of redis-py.
    """
    if isinstance(client, RedisCluster):
        return _Cluster(client)
    if isinstance(client, aioredis.Redis):
        return _Pool(cast(_ConnectionPool, client.connection_pool))
    name = f"{type(client).__module__}.{type(client).__qualname__}"
    if isinstance(client, str):
        # The text is not repeated: a URL may hold a password.
        raise ConfigError("redis_client is a text: pass redis.asyncio.Redis.from_url(...)")
    if name.startswith("redis."):
        raise ConfigError(
            f"redis_client is a synchronous {name}, which would block the bot: "
            "pass a redis.asyncio.Redis (from redis.asyncio import Redis)"
        )
    raise ConfigError(f"redis_client is a {name}: pass a redis.asyncio.Redis, or None for memory")
