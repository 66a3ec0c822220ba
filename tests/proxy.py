"""A slow, stalling or breaking connection to a server: a proxy in its own thread."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic


class Proxy:
    """Forwards bytes to a port on loopback, each way with half the round trip's delay.

    It runs in a thread with an event loop of its own, so that a blocked loop in the test does not
    delay it. With a TLS context it speaks TLS; the server behind it need not.
    """

    def __init__(
        self,
        target: int,
        round_trip: float = 0.0,
        jitter: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.target, self.tls = target, tls
        self.round_trip, self.jitter = round_trip, jitter
        self.port = 0
        self.connections = 0
        """How many were accepted so far."""
        self._stalled_until = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(5)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(5)

    def stall(self, seconds: float) -> None:
        """Delay everything by `seconds`."""
        self._stalled_until = monotonic() + seconds

    def cut(self) -> None:
        """Break all connections."""
        for writer in list(self._writers):
            self._loop.call_soon_threadsafe(abort, writer)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda *_: None)  # connections are broken on purpose
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self.tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        # Also those whose TLS handshake has not ended, which no writer knows.
        for transport in list(getattr(self._loop, "_transports").values()):  # noqa: B009 - asyncio's own
            transport.abort()
        await asyncio.sleep(0.01)  # transports close in turns of their own

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            abort(writer)
            return
        self._writers |= {writer, there[1]}
        # A connection is open when the handshake of TCP has come back.
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))
        for each in (writer, there[1]):
            abort(each)
        self._writers -= {writer, there[1]}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await chunks.get()
                while (wait := max(due, self._stalled_until) - monotonic()) > 0:  # noqa: ASYNC110 - a stall may grow
                    await asyncio.sleep(wait)
                if not data:
                    return
                writer.write(data)

        delivering = asyncio.create_task(deliver())
        last = 0.0
        with suppress(ConnectionError):
            data = b"-"
            while data:
                data = await reader.read(65_536)
                delay = self.round_trip / 2 + random.uniform(-1, 1) * self.jitter / 2
                last = max(last, monotonic() + delay)
                chunks.put_nowait((last, data))
            await delivering
        delivering.cancel()
        with suppress(Exception):
            writer.close()


def abort(writer: asyncio.StreamWriter) -> None:
    """Break the connection."""
    with suppress(AttributeError):  # in Python 3.11.2, of TLS that has ended by itself
        writer.transport.abort()


@contextmanager
def distant(
    target: int,
    round_trip: float = 0.0,
    jitter: float = 0.0,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Proxy]:
    """A proxy to this port, while the block runs."""
    proxy = Proxy(target, round_trip, jitter, tls)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
