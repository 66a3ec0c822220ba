"""Cluster: lines to the nodes of a Redis Cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

from redis import exceptions
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.wire import Command, Hit


class _Line:
    """Speaks to the node that has the key, since the client's own commands are retried."""

    __slots__ = ("_cluster", "_commands", "moved")

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._commands: deque[Command] = deque()
        self.moved = False

    @property
    def spent(self) -> bool:
        return self.moved

    async def send(self, commands: Sequence[Command]) -> None:
        self._commands.extend(commands)

    async def receive(self, count: int) -> list[Any]:
        replies: list[Any] = []
        for _ in range(count):
            command = self._commands.popleft()
            if command[0] == b"MULTI":
                raise ConfigError("a Redis Cluster needs scripts: allow EVALSHA and EVAL on it")
            try:
                replies.append(await self._cluster.attempt(command))
            except (exceptions.ClusterError, exceptions.AskError, exceptions.TryAgainError):
                # Nothing has run on that node. The client follows the slot to where it is now.
                replies.append(await self._cluster.follow(command))
            except exceptions.ResponseError as error:
                replies.append(error)
        return replies

    async def release(self) -> None:
        self._cluster.lost |= self.moved


class Cluster:
    """Knows which node has which key; the connections are the nodes' affair."""

    depth: Final = 1  # a command leaves when its reply is awaited

    def __init__(self, client: RedisCluster) -> None:
        self._client = client
        self.lost = False
        """Whether to ask the cluster who has which slots before the next command."""

    def lane(self, hit: Hit) -> int:
        """Only keys of one slot can be decided together; see `Link.lane`."""
        return int(self._client.keyslot(hit.charges[0].key))

    async def connect(self) -> _Line:
        """A line to all nodes; see `Link.connect`."""
        await self._client.initialize()
        if self.lost:
            await cast(Any, self._client.nodes_manager).initialize()
            self.lost = False
        return _Line(self)

    async def close(self) -> None:
        """Nothing is kept; see `Link.close`."""

    async def attempt(self, command: Command) -> Any:
        """Ask the node that has the key, once."""
        key = command[1] if command[0] == b"DEL" else command[3]
        node = cast(Any, self._client.get_node_from_key(key.decode("utf-8", "surrogatepass")))
        try:
            return await node.execute_command(command[0].decode(), *command[1:])
        except BaseException as error:
            # Whoever was answered, if only by an error, still has its node.
            self.lost = not isinstance(error, exceptions.ResponseError)
            raise

    async def follow(self, command: Command) -> Any:
        """Let the client find the node."""
        name, *arguments = command
        return await self._client.execute_command(name.decode(), *arguments)
