"""Link: the way to the server, over whatever client the user has."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, cast

import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.carrier import Line
from bot_ratelimit.storage.cluster import Cluster
from bot_ratelimit.storage.pool import Pool
from bot_ratelimit.storage.wire import Hit

Client: TypeAlias = "aioredis.Redis | RedisCluster"


class Link(Protocol):
    """A way to the server, whatever the client."""

    @property
    def depth(self) -> int:
        """How many batches can be under way at a time on one line."""
        ...

    def lane(self, hit: Hit) -> int:
        """Hits of one lane may travel in one command."""
        ...

    async def connect(self) -> Line:
        """A line: commands are attempted once on it, and errors of the server are replies too."""
        ...

    async def close(self) -> None:
        """Give back what is kept; the link can be used again."""
        ...


def link_to(client: object) -> Link:
    """The link over this client.

    Raises:
        ConfigError: It is no asynchronous client of redis-py.
    """
    if isinstance(client, RedisCluster):
        return Cluster(client)
    if isinstance(client, aioredis.Redis):
        return Pool(cast(Any, client.connection_pool))
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
