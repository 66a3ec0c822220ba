"""Connection: batches, the order of answers, time-outs and reconnecting."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import ConfigError, Observer, RedisStorage, StorageError
from bot_ratelimit.errors import NotConnectedError, QueueFullError
from bot_ratelimit.storage.base import Ask
from bot_ratelimit.storage.redis import batches
from bot_ratelimit.storage.redis import connection as connections
from bot_ratelimit.storage.redis.connection import Connection
from bot_ratelimit.storage.redis.encoding import encode_command
from bot_ratelimit.storage.redis.request import Call, Request
from tests.benches import TIMEOUT, charge, eventually
from tests.servers import PATIENCE

CALLER: ContextVar[str] = ContextVar("CALLER", default="nobody")


class Wire:
    """Both ends of a connection: records what is written, and the test sends replies."""

    host = "redis.test"

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.is_closed = False

    def attach(self, on_reply: Callable[[Any], None], on_lost: Callable[[Any], None]) -> None:
        self._on_reply, self.lose = on_reply, on_lost

    def write(self, data: bytes, replies: int) -> None:
        _, _, words, _ = data.decode().split("\r\n")
        self.sent.append(words)

    def close(self) -> None:
        self.is_closed = True

    async def reply(self, *replies: str) -> None:
        """Send the next replies; "ok" by default."""
        for reply in replies or ("ok",):
            try:
                Context().run(self._on_reply, reply)  # a transport has no caller's context either
            except StorageError as error:
                self.lose(error)
        await settled()


class Words:
    """A codec: items are words, each a command; the answer is the reply and the word."""

    def __init__(self) -> None:
        self.callers: set[str] = set()

    def calls(self, requests: Sequence[Request]) -> list[Call]:
        words = b"+".join(each.item.encode() for each in requests)
        return [Call(requests, encode_command([words]))]

    def read(self, call: Call, replies: list[Any]) -> Sequence[Any]:
        self.callers.add(CALLER.get())
        words = [each.item for each in call.requests]
        if "bug" in words:
            raise ZeroDivisionError("a bug")
        return [f"{replies[0]} {word}" for word in words]


class Server:
    """An endpoint whose connections the test controls."""

    name = where = "redis.test:6379"

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.refuses: Exception | None = None
        self.opens = asyncio.Event()
        self.opens.set()
        self.codec = Words()
        self.connection = Connection(self, self.codec)

    def ask(self, *words: str, timeout: float = 5) -> list[asyncio.Future[Any]]:
        return [self.connection.submit(word, timeout) for word in words]

    @property
    def wire(self) -> Wire:
        return self.wires[-1]

    async def connect(self) -> Any:
        await self.opens.wait()
        if self.refuses:
            raise self.refuses
        self.wires.append(Wire())
        return self.wires[-1]


async def settled() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """A near server: however slow this machine is, requests are not gathered for too long."""
    monkeypatch.setattr(batches, "GATHER", 60)
    server = Server()
    yield server
    await server.connection.close()


@pytest.fixture
async def connected(server: Server) -> Server:
    """The same, with an open connection."""
    server.connection.open()
    await settled()
    return server


async def test_requests_during_a_batch_share_the_next_one(
    connected: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single request is written before its caller waits; those made meanwhile are sent together,
    in order, and one above the bound fails alone, with its own error."""
    monkeypatch.setattr(connections, "MAX_WAITING", 4)
    tasks = connected.ask("a")
    assert connected.wire.sent == ["a"]
    tasks += connected.ask("d", "c", "b")
    with pytest.raises(QueueFullError, match=r"4 requests already wait for redis\.test:6379"):
        connected.ask("e")
    await settled()
    assert connected.wire.sent == ["a"]
    await connected.wire.reply()
    assert connected.wire.sent == ["a", "d+c+b"]
    await connected.wire.reply("yes")
    assert await asyncio.gather(*tasks) == ["ok a", "yes d", "yes c", "yes b"]


async def test_a_full_batch_never_waits(connected: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full batch is sent, however many are in progress: the server decides one while the next
    one gathers here."""
    monkeypatch.setattr(batches, "MAX_BATCH", 3)
    asked = connected.ask(*"abcdefgh")
    assert connected.wire.sent == ["a", "b+c+d", "e+f+g"]
    await connected.wire.reply("ok", "ok")
    assert len(connected.wire.sent) == 3
    await connected.wire.reply("ok", "ok")
    assert connected.wire.sent[3:] == ["h"]
    assert [await each for each in asked] == [f"ok {word}" for word in "abcdefgh"]


async def test_cancelled_requests(connected: Server) -> None:
    """Cancelled before it is written, a request charges nothing; after that, its reply reaches no
    other caller."""
    a, b, c = connected.ask("a", "b", "c")
    a.cancel()
    b.cancel()
    await connected.wire.reply("first", "second")
    assert connected.wire.sent == ["a", "c"]
    assert await c == "second c"
    assert len(connected.wires) == 1


async def test_a_bug_in_the_codec_fails_only_its_requests(connected: Server) -> None:
    """The error keeps its name, no caller hangs, and the connection goes on; nor does work for
    other callers see a caller's context variables."""
    connected.connection.events = [Observer()]
    CALLER.set("somebody")
    a, b = connected.ask("bug", "b")
    await connected.wire.reply("ok", "ok")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await a
    assert await b == "ok b"
    assert len(connected.wires) == 1
    assert connected.codec.callers == {"nobody"}


async def test_a_broken_connection_fails_only_written_requests(connected: Server) -> None:
    """The outcome of written requests is unknown; the others use a new connection. One that is out
    of step is replaced too, and one that a cancelled task reads, when it is needed."""
    a, b = connected.ask("a", "b")
    connected.wire.lose(ConnectionResetError("reset by peer"))
    await settled()
    with pytest.raises(StorageError, match=r"redis\.test:6379: reset by peer") as raised:
        await a
    assert raised.value.kind == "connection"
    assert (len(connected.wires), connected.wires[0].is_closed) == (2, True)
    assert connected.wire.sent == ["b"]
    await connected.wire.reply("ok", "nobody asked")
    assert await b == "ok b"
    await eventually(lambda: len(connected.wires) == 3)
    (c,) = connected.ask("c")
    connected.wire.lose(asyncio.CancelledError())  # what fakeredis does
    with pytest.raises(StorageError, match="reading was cancelled"):
        await asyncio.wait_for(c, 1)
    await settled()
    assert (len(connected.wires), connected.wire.is_closed) == (3, True)
    (d,) = connected.ask("d")
    await eventually(lambda: len(connected.wires) == 4)
    await connected.wire.reply()
    assert await d == "ok d"


async def test_a_server_that_ends_idle_connections_is_no_failing_server(connected: Server) -> None:
    """However often an idle connection ended, the next one is opened without a pause."""
    for _ in range(9):
        connected.connection._batches.opened_at -= connections.LONGEST_BACKOFF
        connected.wire.lose(OSError("Connection closed by server."))
        await settled()
    assert len(connected.wires) == 10
    (a,) = connected.ask("a")
    await connected.wire.reply()
    assert a.result() == "ok a"


async def test_a_cancelled_connecting_task_is_restarted(server: Server) -> None:
    """A program that cancels all tasks and continues still has limits, and no request is lost."""
    server.opens.clear()
    (a,) = server.ask("a")
    await settled()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await settled()
    server.opens.set()
    (b,) = server.ask("b")
    await settled()
    await server.wire.reply("ok", "ok")
    assert await asyncio.gather(a, b) == ["ok a", "ok b"]


@pytest.mark.parametrize("outcome", ["opens", "fails"])
async def test_no_connection_stays_open_after_close(server: Server, outcome: str) -> None:
    """After `close` there is no connection, even if redis-py swallowed the cancellation."""
    wire = Wire()

    async def connect() -> Any:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        if outcome == "fails":
            raise OSError("Connection reset")
        return wire

    server.connect = connect  # type: ignore[method-assign]  # for this test
    server.connection.open()
    await settled()
    await server.connection.close()
    assert not server.connection.is_open
    assert server.connection.last_error is None
    assert wire.is_closed is (outcome == "opens")


async def test_connecting_delays_no_request_beyond_its_timeout(server: Server) -> None:
    """The first requests wait for their time-out; later ones fail at once, unless they have more
    time. One that was sent at last has an unknown outcome, however long connecting took."""
    server.opens.clear()
    (a,) = server.ask("a", timeout=0.02)
    with pytest.raises(
        NotConnectedError, match=r"not connected to redis\.test:6379 within 0\.02 s"
    ):
        await a
    with pytest.raises(NotConnectedError, match="not connected to"):
        server.ask("b", timeout=0.02)
    (c,) = server.ask("c", timeout=0.1)
    (d,) = server.ask("d")
    await settled()
    server.opens.set()
    with pytest.raises(StorageError, match="no answer") as raised:
        await c
    assert server.wire.sent == ["c+d"]
    assert not isinstance(raised.value, NotConnectedError)
    await server.wire.reply()
    assert await d == "ok d"


async def test_requests_fail_at_once_after_a_failed_connect(server: Server) -> None:
    """After a failed attempt, requests fail at once with its reason, until one succeeds."""
    server.refuses = OSError("Connection refused")
    (a,) = server.ask("a")
    with pytest.raises(NotConnectedError, match=r"redis\.test:6379: Connection refused"):
        await a
    with pytest.raises(NotConnectedError, match="Connection refused"):
        server.ask("b")
    server.refuses = None
    await eventually(lambda: server.connection.is_open, within=2)
    (c,) = server.ask("c")
    await server.wire.reply()
    assert await c == "ok c"


async def test_a_late_answer_is_discarded_and_logged_once(
    connected: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request has its own time-out. A late answer keeps the connection in step, and the log
    says once that the server is alive and which time-out to set."""
    for _ in range(3):
        (a,) = connected.ask("a", timeout=0.02)
        (b,) = connected.ask("b")
        with pytest.raises(StorageError) as raised:
            await a
        await connected.wire.reply("late", "in time")
        assert await b == "in time b"
        (c,) = connected.ask("c", timeout=0.02)
        await asyncio.wait([c])
        await connected.wire.reply()
        assert isinstance(c.exception(), StorageError)
    assert len(connected.wires) == 1
    assert re.search(r"takes \d+\.\d\d s to answer, the timeout is 0\.02 s", str(raised.value))
    (told,) = [text for text in caplog.messages if "is alive, but took" in text]
    (advised,) = re.findall(r"raise the timeout to ([\d.]+) or more .*RATE_LIMIT_TIMEOUT", told)
    assert float(advised) > 0.02


async def test_a_connection_without_an_answer_is_replaced(
    connected: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent connection is replaced, since a new one may work, however long the first of its
    requests would wait; but not before a time-out that is longer."""
    monkeypatch.setattr(connections, "SILENCE", 0.05)
    monkeypatch.setattr(batches, "GATHER", 0.001)
    (alone,) = connected.ask("a", timeout=5)
    await asyncio.sleep(0.15)
    await connected.wire.reply("late")
    assert await alone == "late a"
    assert len(connected.wires) == 1
    (patient,) = connected.ask("p", timeout=6)
    (b,) = connected.ask("b", timeout=0.02)
    with pytest.raises(StorageError, match=r"no answer from redis\.test:6379 within 0\.02 s"):
        await b
    await eventually(lambda: len(connected.wires) >= 2, within=2)
    assert connected.wires[0].is_closed
    assert isinstance(patient.exception(), StorageError)


async def test_an_attempt_that_hangs_fails_even_if_the_loop_is_blocked_again_and_again(
    server: Server,
) -> None:
    """Blocked time excuses one attempt; then requests are told why there is no connection."""
    server.connection.connect_timeout = 0.05
    server.opens.clear()
    server.connection.open()
    async with asyncio.timeout(10):
        while server.connection.last_error is None:
            await asyncio.sleep(0)
            time.sleep(0.1)  # noqa: ASYNC251 - that is what is tested
    assert "no connection to redis.test:6379 within 0.05 s" in str(server.connection.last_error)


async def test_close_fails_waiting_requests_and_allows_new_ones(connected: Server) -> None:
    """After `close` no caller waits, and the next request opens a new connection."""
    tasks = connected.ask("a", "b")
    await connected.connection.close()
    for task in tasks:
        with pytest.raises(StorageError, match="closed"):
            await task
    assert connected.wire.is_closed
    (c,) = connected.ask("c")
    await settled()
    await connected.wire.reply()
    assert await c == "ok c"


async def test_other_threads(connected: Server) -> None:
    """A connection belongs to one loop: another one that runs at the same time gets an error. Its
    owner may be collected in any thread."""
    (a,) = connected.ask("a")

    async def from_elsewhere() -> None:
        connected.ask("b")

    with pytest.raises(ConfigError, match="two running event loops"):
        await asyncio.to_thread(asyncio.run, from_elsewhere())
    await connected.wire.reply()
    assert await a == "ok a"
    await asyncio.to_thread(connected.connection.dropped)
    await settled()
    assert connected.wire.is_closed


async def test_a_storage_that_is_dropped_closes_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without `close`, nothing keeps running and nothing is logged."""
    before = asyncio.all_tasks()
    async with FakeAsyncRedis(server=FakeServer()) as client:
        storage = RedisStorage(client)
        await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT)
        del storage
        gc.collect()
        await settled()
    assert asyncio.all_tasks() == before
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_an_embedded_server_that_ends_is_an_outage() -> None:
    """If writing fails, callers get a StorageError, as with a socket; then it reconnects."""
    server = FakeServer()
    async with FakeAsyncRedis(server=server) as client:
        storage = RedisStorage(client)
        ask = Ask([charge("9/minute")])
        await storage.ask(ask, timeout=TIMEOUT)
        server.connected = False
        with pytest.raises(StorageError):
            await storage.ask(ask, timeout=TIMEOUT)
        server.connected = True
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(StorageError):
                    await storage.ask(ask, timeout=TIMEOUT)
                    break
                await asyncio.sleep(0.05)
        await storage.close()
