"""Pool: lines over the connections of a redis-py pool."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import redis.asyncio as aioredis
from redis import exceptions

from bot_ratelimit.storage import wire
from bot_ratelimit.storage.wire import Command, Hit

TURNS: Final = 32
"""Batches over one connection before others who want it of its pool get a chance to have it."""
KEPT: Final = 1.0
"""Seconds for which a connection is kept for the next decision."""
SPARE: Final = 10
"""Of a pool with so many connections or more, one can be kept."""


class _Connection(Protocol):
    """What we need of a redis-py connection."""

    socket_timeout: float | None

    @property
    def is_connected(self) -> bool: ...

    async def send_packed_command(self, command: bytes, check_health: bool = True) -> None: ...
    async def read_response(self) -> Any: ...
    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool = False) -> None: ...


class _ConnectionPool(Protocol):
    """What we need of a redis-py connection pool; the same from redis-py 6.4 to 8."""

    max_connections: int

    async def get_connection(self) -> _Connection: ...
    async def release(self, connection: _Connection) -> None: ...
    async def disconnect(self, inuse_connections: bool = True) -> None: ...


class _Line:
    """Speaks on a connection directly, since a client's own commands may be retried."""

    __slots__ = (
        "_connection",
        "_link",
        "_missing",
        "_sent",
        "_socket_timeout",
        "generation",
        "moved",
        "until",
    )

    def __init__(self, link: Pool, connection: _Connection, generation: int) -> None:
        self._link = link
        self._connection = connection
        self._missing = 0  # replies that are to come
        self._sent = 0
        self.moved = False
        self.generation = generation
        self.until = 0.0
        """Until when it is kept while nobody uses it."""
        # The storage has a deadline for all of it; redis-py's own time-out for each step would cost
        # more than the decision. The connection is ours alone until it is given back.
        self._socket_timeout, connection.socket_timeout = connection.socket_timeout, None

    @property
    def spent(self) -> bool:
        return self.moved or self._sent >= TURNS

    async def send(self, commands: Sequence[Command]) -> None:
        if not commands:
            return
        connection, idle = self._connection, not self._missing
        self._missing += len(commands)
        self._sent += 1
        if not idle and not connection.is_connected:  # it would be opened anew: another's replies
            raise exceptions.ConnectionError("closed with replies to come")
        if idle and _is_stale(connection):
            await connection.disconnect(nowait=True)
            await connection.connect()
        packed = b"".join(map(wire.encode, commands))
        await connection.send_packed_command(packed, check_health=idle)

    async def receive(self, count: int) -> list[Any]:
        replies: list[Any] = []
        for _ in range(count):
            try:
                replies.append(await self._connection.read_response())
            except exceptions.ResponseError as error:
                replies.append(error)
            self._missing -= 1
        return replies

    async def release(self) -> None:
        if self._missing or self.spent or not self._link.keep(self):
            await self.give_back()

    async def give_back(self) -> None:
        """Return the connection to the pool, closed if a late reply could meet the next command."""
        pool, connection = self._link.pool, self._connection
        connection.socket_timeout = self._socket_timeout
        try:
            if self._missing or self.moved:
                await connection.disconnect(nowait=True)
        finally:
            await pool.release(connection)
        if self.moved:
            await pool.disconnect(inuse_connections=False)


class Pool:
    """Keeps the last connection for a moment: to get one takes a pool as long as a decision us.

    Of a small pool, or one where others wait for a free connection, none is kept.
    """

    depth: Final = 2

    def __init__(self, pool: _ConnectionPool) -> None:
        self.pool = pool
        blocking = isinstance(pool, aioredis.BlockingConnectionPool)
        self._keeps = not blocking and pool.max_connections >= SPARE
        self._kept: _Line | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._returning: asyncio.Task[None] | None = None
        self.generation = 0
        """How often the link was closed: what was under way then is not kept."""

    def lane(self, hit: Hit) -> int:
        """Everything may travel together; see `Link.lane`."""
        return 0

    async def connect(self) -> _Line:
        """The line that was kept, or one over a connection of the pool; see `Link.connect`."""
        loop = asyncio.get_running_loop()
        line, self._kept = self._kept, None
        if line is not None and loop is self._loop:
            return line
        if loop is not self._loop:
            self._loop, self._timer = loop, None
        if line is not None:
            await line.give_back()
        generation = self.generation
        return _Line(self, await self.pool.get_connection(), generation)

    def keep(self, line: _Line) -> bool:
        """Keep the line for the next one who connects, unless there is one already."""
        loop = self._loop
        if not self._keeps or self._kept is not None or loop is None:
            return False
        if line.generation != self.generation:
            return False
        self._kept, line.until = line, loop.time() + KEPT
        if self._timer is None:
            self._timer = loop.call_at(line.until, self._expire, loop)
        return True

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        line = self._kept
        if line is not None and line.until <= loop.time():
            self._kept = None
            self._returning = loop.create_task(self._return(line))
        elif line is not None:
            self._timer = loop.call_at(line.until, self._expire, loop)

    async def _return(self, line: _Line) -> None:
        with suppress(Exception):  # whatever is wrong with it, the next one to use it will hear
            await line.give_back()

    async def close(self) -> None:
        """Give back what is kept; see `Link.close`."""
        self.generation += 1
        line, self._kept = self._kept, None
        if line is not None:
            await line.give_back()


def _is_stale(connection: _Connection) -> bool:
    """Whether the server has closed the connection while it was idle.

    The pool looks for that too, but redis-py 8 leaves it be if it speaks RESP3.
    """
    reader = getattr(connection, "_reader", None)
    return isinstance(reader, asyncio.StreamReader) and reader.at_eof()
