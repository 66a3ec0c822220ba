"""Proxy: a TCP proxy to a Redis server that can be cut and repaired, to simulate an outage."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Passes bytes between a free port of loopback and a server elsewhere.

    Args:
        connect: Opens a connection to the server.
    """

    def __init__(self, connect: Callable[[], Awaitable[Streams]]) -> None:
        self.port = 0
        """The port of the proxy on loopback; it stays the same after `repair`."""
        self._connect = connect
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Start listening."""
        await self.repair()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Drop all connections."""
        await self.cut()

    async def cut(self) -> None:
        """Break all connections and refuse new ones, as if the server had been killed."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def repair(self) -> None:
        """Accept connections again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            far_reader, far_writer = await self._connect()
        except OSError:  # the server is unreachable: abort, which looks the same to the client
            writer.transport.abort()
        else:
            self._writers.add(far_writer)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            self._writers.discard(far_writer)
        self._writers.discard(writer)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until one side closes its connection, then close the other."""
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
