"""Wires: open connections, which write commands and hand on the replies in their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, TypeAlias

import hiredis
from redis import exceptions

from bot_ratelimit.errors import StorageError

OnReply: TypeAlias = Callable[[Any], None]
OnLost: TypeAlias = Callable[[BaseException], None]

_INCOMPLETE: Final = object()
_ENDED: Final = "Connection closed by server."  # as redis-py words it


class SocketWire(asyncio.Protocol):
    """The wire over a transport that redis-py has opened: TCP, TLS or a Unix socket.

    No task reads, so no program can cancel it; `connection_lost` is where a connection ends.

    Args:
        host: The host of the server; empty for a Unix socket.
        transport: The transport; `attach` takes it over from redis-py.
        has_ended: Tells whether the server has ended the connection before that.
        close: Closes redis-py's connection at once, also one of an event loop that has ended.
    """

    def __init__(
        self,
        host: str,
        transport: asyncio.Transport,
        has_ended: Callable[[], bool],
        close: Callable[[], None],
    ) -> None:
        self.host = host
        self._transport = transport
        self._has_ended = has_ended
        self._close = close
        self._on_reply: OnReply | None = None  # None before `attach` and after the end
        self._on_lost: OnLost | None = None
        self._ending: AsyncGenerator[None] | None = None
        self._parser = hiredis.Reader(
            protocolError=exceptions.InvalidResponse,
            replyError=exceptions.ResponseError,
            notEnoughData=_INCOMPLETE,
        )

    def attach(self, on_reply: OnReply, on_lost: OnLost) -> None:
        """Start to read.

        Args:
            on_reply: Called with each reply; an error reply is an exception. A StorageError that it
                raises means that the replies are out of step, and ends the connection.
            on_lost: Called once, if the connection ends before `close`.
        """
        self._on_reply, self._on_lost = on_reply, on_lost
        self._transport.set_protocol(self)
        self._ending = self._close_with_loop()
        _run(self._ending.__anext__())
        if self._has_ended():  # then nobody tells this protocol
            asyncio.get_running_loop().call_soon(self.connection_lost, None, context=Context())

    def write(self, data: bytes, replies: int) -> None:
        """Write encoded commands that produce so many replies. Never waits, never raises."""
        self._transport.write(data)

    def close(self) -> None:
        """End the connection without waiting."""
        self._on_reply = self._on_lost = None
        ending, self._ending = self._ending, None
        if ending is not None:
            _run(ending.aclose())
        self._close()

    async def _close_with_loop(self) -> AsyncGenerator[None]:
        """Close the connection when the event loop ends, for a storage that nobody closed.

        asyncio.run() closes asynchronous generators last. A task that waits for the end could be
        cancelled by the program.
        """
        try:
            yield
        finally:
            self._on_reply = self._on_lost = self._ending = None
            self._close()

    def data_received(self, data: bytes) -> None:
        """Hand on what has arrived; asyncio calls this."""
        parser = self._parser
        try:
            parser.feed(data)
            while (reply := parser.gets()) is not _INCOMPLETE:
                if self._on_reply is None:  # closed by the owner on the reply before
                    return
                if type(reply) is not hiredis.PushNotification:  # nothing was subscribed to
                    self._on_reply(reply)
        except (exceptions.InvalidResponse, StorageError) as error:
            self.connection_lost(error)

    def eof_received(self) -> None:
        """The server has ended the connection; asyncio calls this and closes the transport."""
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended; asyncio calls this."""
        on_lost = self._on_lost
        self._on_reply = self._on_lost = None
        if on_lost is not None:
            on_lost(exc or exceptions.ConnectionError(_ENDED))


def _run(step: Awaitable[None]) -> None:
    """Run a step of an asynchronous generator that awaits nothing."""
    with suppress(StopIteration):
        step.__await__().__next__()


class AdapterWire:
    """The wire over a connection that is no socket, such as fakeredis.

    A task reads while replies are due.
    """

    host = ""

    def __init__(
        self, connection: Any, write: Callable[[list[bytes]], None], close: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._write = write
        self._close = close
        self._due = 0
        self._reading: asyncio.Task[None] | None = None
        self._on_reply: OnReply | None = None
        self._on_lost: OnLost | None = None

    def attach(self, on_reply: OnReply, on_lost: OnLost) -> None:
        self._on_reply, self._on_lost = on_reply, on_lost

    def write(self, data: bytes, replies: int) -> None:
        self._due += replies
        loop = asyncio.get_running_loop()
        if self._reading is None or self._reading.done():
            self._reading = loop.create_task(self._read(), context=Context())
        try:
            self._write([data])
        except exceptions.ConnectionError as error:  # told later, as a socket does
            loop.call_soon(self._lose, error, context=Context())

    def close(self) -> None:
        self._on_reply = self._on_lost = None
        self._close()

    async def _read(self) -> None:
        try:
            while self._due:
                try:
                    reply = await self._connection.read_response(disable_decoding=True)
                except exceptions.ResponseError as error:
                    reply = error
                self._due -= 1
                if self._on_reply is not None:
                    self._on_reply(reply)
        except BaseException as error:
            self._lose(error)
            if not isinstance(error, Exception):
                raise

    def _lose(self, error: BaseException) -> None:
        on_lost = self._on_lost
        self._on_reply = self._on_lost = None
        if on_lost is not None:
            on_lost(error)


Wire: TypeAlias = SocketWire | AdapterWire
