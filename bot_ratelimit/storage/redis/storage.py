"""RedisStorage: counts on a Redis or Valkey server, shared by every instance of the bot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Sequence
from typing import Any, Literal

from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.storage.base import Ask, ConnectionStatus, Count, Op, ServerEvents, Storage
from bot_ratelimit.storage.redis import driver
from bot_ratelimit.storage.redis.banlist import RedisBanList
from bot_ratelimit.storage.redis.cluster import Shards
from bot_ratelimit.storage.redis.codec import DecisionCodec, Item
from bot_ratelimit.storage.redis.connection import CONNECT_TIMEOUT, Connection
from bot_ratelimit.storage.redis.documents import RedisDocuments
from bot_ratelimit.storage.redis.driver import Client, Endpoint
from bot_ratelimit.storage.redis.encoding import Command
from bot_ratelimit.storage.redis.leases import RedisLeases
from bot_ratelimit.storage.redis.sentinel import SentinelEndpoint
from bot_ratelimit.storage.redis.tallies import RedisTallies
from bot_ratelimit.storage.redis.urls import client_given_as


class RedisStorage(Storage):
    """Decides on a Redis or Valkey server, in one round trip, with the server's clock.

    ::

        Limiter(RedisStorage("redis://10.0.0.5"), key_prefix="my_bot")

    The storage has a connection of its own to each server, with the credentials, TLS and Sentinel
    settings of the client. It opens the connection in the background and keeps it until `close`.

    Args:
        client: A URL, such as `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or
            `redis+cluster://`; or a `redis.asyncio.Redis` of any kind (from_url, Sentinel, any
            pool, with or without decode_responses), or a `redis.asyncio.RedisCluster`. It says how
            to connect. Its pool, its time-outs and its retries are not used, because a repeated hit
            could be charged twice.
        close_client: Whether `close` also closes the client; by default only one made from a URL.
        connect_timeout: Seconds to open a connection: name look-up, TCP, TLS, log-in; 5 by default.
            No update waits that long.

    Raises:
        ConfigError: The URL is wrong, or this is not an asynchronous client of redis-py.
    """

    source: Literal["redis"] = "redis"

    def __init__(
        self,
        client: Client | str,
        *,
        close_client: bool = False,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        if isinstance(client, str):
            client, close_client = client_given_as(client), True
        driver.check_client(client)
        self._client = client
        self._close_client = close_client
        self._key_space = driver.key_space_of(client)
        self._events: tuple[ServerEvents, ...] = ()
        self._servers: Connection | Shards
        self._only: Connection | None = None  # unless this is a cluster
        if isinstance(client, RedisCluster):
            self._servers = Shards(client, connect_timeout)
        else:
            pool: Any = client.connection_pool
            is_sentinel = isinstance(pool, SentinelConnectionPool)
            endpoint = SentinelEndpoint(pool, connect_timeout) if is_sentinel else Endpoint(pool)
            codec = DecisionCodec(lambda: endpoint.where, driver.how_to_allow_scripts(client))
            self._servers = self._only = Connection(
                endpoint, codec, connect_timeout=connect_timeout
            )

    def __del__(self) -> None:
        """Close the connections of a storage that nobody closed."""
        if (servers := getattr(self, "_servers", None)) is not None:
            servers.dropped()

    def ask(self, ask: Ask, *, timeout: float) -> Awaitable[Sequence[Verdict]]:
        if self._only is not None:
            return self._only.submit(ask, timeout)
        if ask.op is Op.RESET:
            return self._reset_one_by_one(ask, timeout)
        return self._submit(ask, ask.counts[0].key, timeout)

    async def _reset_one_by_one(self, ask: Ask, timeout: float) -> list[Verdict]:
        """Reset counts that may be on several nodes of a cluster."""
        resets = (Ask([count], Op.RESET) for count in ask.counts)
        answers = (self._submit(each, each.counts[0].key, timeout) for each in resets)
        return [verdict for (verdict,) in await asyncio.gather(*answers)]

    async def execute(self, command: Command, *, key: str, timeout: float) -> Any:
        """Send a command that is not a decision, once, and return its reply as redis-py parses it.

        Args:
            command: Its name and arguments, as bytes.
            key: A key of the command, which decides where it is sent.
            timeout: Seconds.

        Raises:
            StorageError: The server is unreachable, too slow or cannot serve now.
            ConfigError: The server refuses until a setting is changed.
        """
        return await self._submit(command, key, timeout)

    def server(self, counts: Sequence[Count]) -> str:
        if self._only is not None:
            return self._only.name
        return self._servers.holder(counts[0].key).name

    def observe(self, events: ServerEvents) -> None:
        if events not in self._events:
            self._events = (*self._events, events)
            self._servers.observe(self._events)

    def status(self) -> Sequence[ConnectionStatus]:
        return [
            ConnectionStatus(
                each.name,
                each.is_open,
                each.latency,
                each.codec.uses_script,
                each.problem,
            )
            for each in self._servers.connections()
        ]

    def open(self) -> None:
        self._servers.open()

    async def close(self) -> None:
        """Close the connection; the client stays open unless `close_client` was given.

        Like the client, the storage can be used again, for example when a dispatcher is restarted.
        """
        await self._servers.close()
        if self._close_client:
            await self._client.aclose()

    @property
    def key_space(self) -> Hashable:
        return self._key_space

    def leases(self) -> RedisLeases:
        return RedisLeases(self.execute)

    def bans(self, prefix: str) -> RedisBanList:
        return RedisBanList(self.execute, prefix)

    def documents(self) -> RedisDocuments:
        return RedisDocuments(self.execute, is_cluster=self._only is None)

    def tallies(self, prefix: str) -> RedisTallies:
        return RedisTallies(self.execute, prefix)

    def _submit(self, item: Item, key: str, timeout: float) -> Awaitable[Any]:
        if isinstance(self._servers, Shards):
            return self._servers.submit(item, key, timeout)
        return self._servers.submit(item, timeout)
