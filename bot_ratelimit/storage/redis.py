"""RedisStorage: counts on a Redis or Valkey server, shared by every instance of the bot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from itertools import chain
from typing import Any, Literal, cast

from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool

from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.observer import Observer, Observers, observers_of
from bot_ratelimit.storage import driver, encoding
from bot_ratelimit.storage.base import Charge, ConnectionStatus
from bot_ratelimit.storage.cluster import Shards
from bot_ratelimit.storage.connection import Connection
from bot_ratelimit.storage.decision_codec import Commands, DecisionCodec, Item
from bot_ratelimit.storage.driver import Client, Endpoint, PoolEndpoint
from bot_ratelimit.storage.encoding import Command, Hit
from bot_ratelimit.storage.faults import translated
from bot_ratelimit.storage.sentinel import SentinelEndpoint


class RedisStorage:
    """Decides on the server, in one round trip, with the server's clock.

    ::

        Limiter(RedisStorage(Redis(host="10.0.0.5")), key_prefix="my_bot")

    The storage has a connection of its own to each server, with the credentials, TLS and Sentinel
    of the client; it opens it in the background and keeps it until `close`.

    Args:
        client: A `redis.asyncio.Redis` of any kind (from_url, Sentinel, any pool, with or without
            decode_responses), or a `redis.asyncio.RedisCluster`. It says how to connect; its pool,
            its time-outs and its retries are not used, since a repeated hit could be charged twice.
        close_client: Whether `close` closes the client too.

    Raises:
        ConfigError: The client is synchronous, or no client at all.
    """

    source: Literal["redis"] = "redis"

    def __init__(self, client: Client, *, close_client: bool = False) -> None:
        driver.check_client(client)
        self._client = client
        self._close_client = close_client
        self._observer: Observers | None = None
        self._shards: Shards | None = None
        self._connection: Connection[Item] | None = None
        if isinstance(client, RedisCluster):
            self._shards = Shards(client)
        else:
            endpoint = _endpoint(client.connection_pool)
            self._connection = Connection(endpoint, DecisionCodec(endpoint.name))

    @property
    def is_cluster(self) -> bool:
        """Whether the keys may be on several nodes."""
        return self._shards is not None

    def hit(
        self, charges: Sequence[Charge], *, once: str | None = None, timeout: float
    ) -> Awaitable[list[Verdict]]:
        """Decide and charge; see `Storage.hit`."""
        return self._submit(Hit(charges, once), charges[0].key, timeout)

    def peek(self, charges: Sequence[Charge], *, timeout: float) -> Awaitable[list[Verdict]]:
        """Look without charging; see `Storage.peek`."""
        return self._submit(Hit(charges, peek=True), charges[0].key, timeout)

    def charge(self, charges: Sequence[Charge], *, timeout: float) -> Awaitable[list[Verdict]]:
        """Charge whatever is left; see `Storage.charge`."""
        return self._submit(Hit(charges, adjust="+"), charges[0].key, timeout)

    def refund(
        self, charges: Sequence[Charge], *, age_us: int = 0, timeout: float
    ) -> Awaitable[list[Verdict]]:
        """Give back; see `Storage.refund`."""
        return self._submit(Hit(charges, adjust="-", age_us=age_us), charges[0].key, timeout)

    async def reset(self, charges: Sequence[Charge], *, timeout: float) -> int:
        """Forget these keys; see `Storage.reset`."""
        slots: dict[int | None, list[Charge]] = {}  # on a cluster the keys may be on many nodes
        for charge in charges:
            slot = None if self._connection is not None else self._route(charge.key)[1]
            slots.setdefault(slot, []).append(charge)
        forgotten = await asyncio.gather(
            *(self._submit(Hit(some, reset=True), some[0].key, timeout) for some in slots.values())
        )
        return sum(verdict.reset > 0 for verdict in chain.from_iterable(forgotten))

    async def execute(self, command: Command, *, key: str, timeout: float) -> Any:
        """Send a command that is no decision, once, and return its reply as redis-py parses it.

        Args:
            command: Its name and arguments, as bytes.
            key: The key it is about, which says where to send it.
            timeout: Seconds.

        Raises:
            StorageError: The server is out of reach, too slow or cannot serve now.
            ConfigError: It will not serve before somebody changes a setting.
        """
        (reply,) = await self._submit(Commands([command]), key, timeout)
        if isinstance(reply, Exception):
            raise translated(reply) from reply
        return reply

    def server(self, charges: Sequence[Charge]) -> str:
        """The server that decides about these charges, as logs name it; see `Storage.server`."""
        if self._connection is not None:
            return self._connection.name
        return self._route(charges[0].key)[0].name

    def observe(self, observer: Observer) -> None:
        """Tell this observer of connections and batches, beside those that are told already."""
        self._observer = observers_of(self._observer, observer)
        if self._shards is not None:
            self._shards.observe(self._observer)
        elif self._connection is not None:
            self._connection.observer = self._observer

    def status(self) -> list[ConnectionStatus]:
        """How the connections are, one for each server."""
        connections = self._shards.connections() if self._shards else [self._connection]
        return [
            ConnectionStatus(
                each.name,
                each.is_open,
                each.latency,
                cast(DecisionCodec, each.codec).uses_script,
                "" if each.last_error is None else str(each.last_error),
            )
            for each in connections
            if each is not None
        ]

    def open(self) -> None:
        """Begin to connect, in the background; otherwise the first decision does."""
        (self._connection or cast(Shards, self._shards)).open()

    async def close(self) -> None:
        """Close the connection; the client stays open unless `close_client` was given.

        Like the client itself, the storage can be used again, as when a dispatcher is restarted.
        """
        await (self._connection or cast(Shards, self._shards)).close()
        if self._close_client:
            await self._client.aclose()

    def _submit(self, item: Item, key: str, timeout: float) -> asyncio.Future[Any]:
        if self._connection is not None:
            return self._connection.submit(item, timeout)
        connection, slot = self._route(key)
        return connection.submit(item, timeout, slot)

    def _route(self, key: str) -> tuple[Connection[Item], int]:
        return cast(Shards, self._shards).route(encoding.encode_key(key))


def _endpoint(pool: Any) -> Endpoint:
    return (
        SentinelEndpoint(pool) if isinstance(pool, SentinelConnectionPool) else PoolEndpoint(pool)
    )
