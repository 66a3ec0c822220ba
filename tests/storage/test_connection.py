"""Connection: in which batches requests leave, who gets which answer, and who gives up when."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import RedisStorage, StorageError
from bot_ratelimit.errors import NotConnectedError, QueueFullError
from bot_ratelimit.storage import connection as connections
from bot_ratelimit.storage.connection import Connection
from bot_ratelimit.storage.request import AGAIN, Call, ParsedReplies, Redirect, Request
from tests.benches import TIMEOUT, charge


class Wire:
    """Both ends of a connection: what was written, and replies when the test sends them."""

    host = "redis.test"

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.is_closed = False

    def write(self, packed: bytes) -> None:
        self.sent.append(
            [part[part.index(b"\n") + 1 :].split(b"\r")[0].decode() for part in _commands(packed)]
        )

    async def read(self) -> Any:
        reply = await self.replies.get()
        if isinstance(reply, OSError):
            raise reply
        return reply

    def close(self) -> None:
        self.is_closed = True

    async def reply(self, *replies: Any) -> None:
        """The next replies; "ok" unless given."""
        for reply in replies or ("ok",):
            self.replies.put_nowait(reply)
        await settled()


def _commands(packed: bytes) -> list[bytes]:
    return packed.split(b"*1\r\n")[1:]


class Server:
    """An endpoint whose connections the test holds in its hands."""

    name = where = "redis.test:6379"

    def __init__(self) -> None:
        self.wires: list[Wire] = []
        self.refuses: Exception | None = None
        self.opens = asyncio.Event()
        self.opens.set()

    @property
    def wire(self) -> Wire:
        return self.wires[-1]

    async def connect(self) -> Any:
        await self.opens.wait()
        if self.refuses:
            raise self.refuses
        self.wires.append(Wire())
        return self.wires[-1]


class Words:
    """A codec: items are words, each a command; the answer to each is the reply and the word."""

    def __init__(self, together: bool = True) -> None:
        self.together = together
        self.again: set[str] = set()

    def weigh(self, item: str) -> int:
        return len(item)

    def calls(self, requests: Sequence[Request[str]]) -> list[Call[str]]:
        return [Call(requests, [["+".join(each.item for each in requests).encode()]])]

    def read(self, call: Call[str], replies: list[Any]) -> ParsedReplies:
        again = {each.item for each in call.requests} & self.again
        if again:
            self.again -= again
            return ParsedReplies([AGAIN] * len(call.requests))
        (reply,) = replies
        if isinstance(reply, Exception):
            return ParsedReplies([reply] * len(call.requests))
        return ParsedReplies([f"{reply} {each.item}" for each in call.requests])


async def settled() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def connection(server: Server) -> AsyncIterator[Connection[str]]:
    connection = Connection(server, Words())
    yield connection
    await connection.close()


def ask(connection: Connection[str], *words: str, timeout: float = 5) -> list[asyncio.Future[Any]]:
    return [connection.submit(word, timeout) for word in words]


async def open_stream(connection: Connection[str]) -> None:
    connection.open()
    await settled()


async def test_leaves_at_once_when_nothing_is_on_its_way(
    connection: Connection[str], server: Server
) -> None:
    """A lone request is written before its caller waits, in no batch and by no task."""
    await open_stream(connection)
    (one,) = ask(connection, "a")
    assert server.wire.sent == [["a"]]
    await server.wire.reply()
    assert await one == "ok a"


async def test_what_comes_meanwhile_leaves_together_in_order(
    connection: Connection[str], server: Server
) -> None:
    """A few who ask while one is on its way share the next batch, first come first."""
    await open_stream(connection)
    tasks = ask(connection, "a", "d", "c", "b")
    await settled()
    assert server.wire.sent == [["a"]]
    await server.wire.reply()
    assert server.wire.sent == [["a"], ["d+c+b"]]
    await server.wire.reply("yes")
    assert await asyncio.gather(*tasks) == ["ok a", "yes d", "yes c", "yes b"]


async def test_a_crowd_travels_in_halves(connection: Connection[str], server: Server) -> None:
    """Two batches are on their way, so that one is decided while the other is dealt with here."""
    await open_stream(connection)
    tasks = ask(connection, *(chr(97 + i) for i in range(21)))
    await settled()
    assert [len(batch[0].split("+")) for batch in server.wire.sent] == [1, 11]
    await server.wire.reply("ok", "ok")
    await server.wire.reply("ok", "ok")
    assert [await task for task in tasks] == [f"ok {chr(97 + i)}" for i in range(21)]


async def test_a_full_batch_never_waits(
    connection: Connection[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many are on their way, what is as heavy as a batch may be is sent."""
    monkeypatch.setattr(connections, "MAX_WEIGHT", 3)
    await open_stream(connection)
    ask(connection, "a", "b", "c", "d", "eeee", "f", "g", "h")
    assert server.wire.sent == [["a"], ["b+c+d"], ["eeee"], ["f+g+h"]]


async def test_far_away_nobody_waits_for_somebody_elses_round_trip(
    connection: Connection[str], server: Server
) -> None:
    """What is asked while batches are on their way to a distant server follows in a millisecond."""
    await open_stream(connection)
    connection._round_trip = 0.12
    first = ask(connection, "a", "b")
    async with asyncio.timeout(1):
        while len(server.wire.sent) < 2:  # noqa: ASYNC110 - nothing tells of a write
            await asyncio.sleep(0.001)
    ask(connection, "c")
    async with asyncio.timeout(1):
        while len(server.wire.sent) < 3:  # noqa: ASYNC110 - nothing tells of a write
            await asyncio.sleep(0.001)
    assert server.wire.sent == [["a"], ["b"], ["c"]]
    await server.wire.reply("ok", "ok")
    assert [await each for each in first] == ["ok a", "ok b"]


async def test_those_who_give_up_before_it_leaves_are_not_sent(
    connection: Connection[str], server: Server
) -> None:
    """A cancelled request that was not written is charged nothing."""
    await open_stream(connection)
    a, b, c = ask(connection, "a", "b", "c")
    b.cancel()
    await server.wire.reply("ok", "ok")
    assert server.wire.sent == [["a"], ["c"]]
    assert [await a, await c] == ["ok a", "ok c"]


async def test_those_who_give_up_on_the_way_keep_the_connection_in_step(
    connection: Connection[str], server: Server
) -> None:
    """The reply to a cancelled request reaches nobody else."""
    await open_stream(connection)
    a, b = ask(connection, "a", "b")
    a.cancel()
    await server.wire.reply("first", "second")
    assert await b == "second b"
    assert len(server.wires) == 1


async def test_what_did_not_run_is_asked_again_before_the_others(server: Server) -> None:
    """When the server says that nothing ran, the same requests go again, in their old order."""
    codec = Words()
    connection = Connection(server, codec)
    await open_stream(connection)
    tasks = ask(connection, "a", "b", "c")
    codec.again = {"a"}
    await server.wire.reply("no script")
    assert server.wire.sent == [["a"], ["a+b+c"]]
    await server.wire.reply()
    assert await asyncio.gather(*tasks) == ["ok a", "ok b", "ok c"]
    await connection.close()


async def test_a_broken_connection_fails_what_was_sent_and_keeps_what_was_not(
    connection: Connection[str], server: Server
) -> None:
    """Nobody knows what became of the first; the others travel on a new connection."""
    await open_stream(connection)
    a, b = ask(connection, "a", "b")
    await server.wire.reply(ConnectionResetError("reset by peer"))
    with pytest.raises(StorageError, match=r"redis\.test:6379: reset by peer") as raised:
        await a
    assert raised.value.kind == "connection"
    assert (len(server.wires), server.wires[0].is_closed) == (2, True)
    assert server.wire.sent == [["b"]]
    await server.wire.reply()
    assert await b == "ok b"


async def test_a_bug_in_reading_replies_is_told_to_those_it_concerns(server: Server) -> None:
    """It keeps its name and its traceback, nobody waits for ever, and the connection goes on."""

    class Buggy(Words):
        def read(self, call: Call[str], replies: list[Any]) -> ParsedReplies:
            if call.requests[0].item == "a":
                raise ZeroDivisionError("a bug")
            return super().read(call, replies)

    connection = Connection(server, Buggy())
    await open_stream(connection)
    a, b = ask(connection, "a", "b")
    await server.wire.reply("ok", "ok")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await a
    assert await b == "ok b"
    assert len(server.wires) == 1
    await connection.close()


async def test_a_write_that_fails_is_a_broken_connection(
    connection: Connection[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written is told as such, and the next request goes by a new connection."""

    def broken(packed: bytes) -> None:
        raise RuntimeError("the handler is closed")

    await open_stream(connection)
    monkeypatch.setattr(server.wire, "write", broken)
    (a,) = ask(connection, "a")
    with pytest.raises(StorageError, match="the handler is closed"):
        await a
    await settled()
    (b,) = ask(connection, "b")
    await server.wire.reply()
    assert await b == "ok b"


async def test_a_connecting_task_that_somebody_cancels_is_started_again(
    connection: Connection[str], server: Server
) -> None:
    """Programs that cancel all tasks and go on are limited again."""
    server.opens.clear()
    (a,) = ask(connection, "a")
    await settled()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await settled()
    server.opens.set()
    (b,) = ask(connection, "b")
    await settled()
    await server.wire.reply("ok", "ok")
    assert await asyncio.gather(a, b) == ["ok a", "ok b"]


@pytest.mark.parametrize("outcome", ["opens", "fails"])
async def test_connecting_that_cannot_be_cancelled_comes_to_nothing(
    connection: Connection[str], server: Server, outcome: str
) -> None:
    """After close there is no connection, even if redis-py swallowed the cancellation."""
    wire = Wire()

    async def connect() -> Any:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        if outcome == "fails":
            raise OSError("Connection reset")
        return wire

    server.connect = connect  # type: ignore[method-assign]  # for this test
    connection.open()
    await settled()
    await connection.close()
    assert not connection.is_open
    assert connection.last_error is None
    assert wire.is_closed is (outcome == "opens")


async def test_a_reply_that_nobody_asked_for_ends_the_connection(
    connection: Connection[str], server: Server
) -> None:
    """A connection that is out of step is never used again."""
    await open_stream(connection)
    await server.wire.reply("?")
    (a,) = ask(connection, "a")
    await settled()
    assert (len(server.wires), server.wire.sent) == (2, [["a"]])
    await server.wire.reply()
    assert await a == "ok a"


async def test_requests_wait_for_the_first_connection(
    connection: Connection[str], server: Server
) -> None:
    """While the connection is being opened requests wait, and none is lost."""
    server.opens.clear()
    tasks = ask(connection, "a", "b")
    await settled()
    server.opens.set()
    await settled()
    await server.wire.reply("ok", "ok")
    assert await asyncio.gather(*tasks) == ["ok a", "ok b"]


async def test_nobody_waits_for_a_server_that_refuses(
    connection: Connection[str], server: Server
) -> None:
    """Once connecting has failed, requests are refused at once with the reason, until it works."""
    server.refuses = OSError("Connection refused")
    (a,) = ask(connection, "a")
    with pytest.raises(NotConnectedError, match=r"redis\.test:6379: Connection refused"):
        await a
    with pytest.raises(NotConnectedError, match="Connection refused"):
        connection.submit("b", 5)
    server.refuses = None
    async with asyncio.timeout(2):
        while not connection.is_open:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    (c,) = ask(connection, "c")
    await server.wire.reply()
    assert await c == "ok c"


async def test_connecting_holds_nobody_up_for_longer_than_the_timeout(
    connection: Connection[str], server: Server
) -> None:
    """The first who ask wait for their time-out; those who come later are told at once."""
    server.opens.clear()
    (a,) = ask(connection, "a", timeout=0.02)
    with pytest.raises(
        NotConnectedError, match=r"not connected to redis\.test:6379 within 0\.02 s"
    ):
        await a
    with pytest.raises(NotConnectedError, match="still connecting"):
        connection.submit("b", 0.02)


async def test_a_silent_server_is_given_up_in_time(
    connection: Connection[str], server: Server
) -> None:
    """Each request waits for its own time-out, and a late answer keeps the connection in step."""
    await open_stream(connection)
    (a,) = ask(connection, "a", timeout=0.02)
    (b,) = ask(connection, "b", timeout=5)
    with pytest.raises(StorageError, match=r"no answer from redis\.test:6379 within 0\.02 s"):
        await a
    await server.wire.reply("late", "in time")
    assert await b == "in time b"
    assert len(server.wires) == 1


async def test_a_late_answer_says_how_slow_the_server_is(
    connection: Connection[str], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells, once, that the server is alive and what to set; so do the errors from then."""
    await open_stream(connection)
    for _ in range(3):
        (a,) = ask(connection, "a", timeout=0.02)
        with pytest.raises(StorageError) as raised:
            await a
        await server.wire.reply()
    assert "takes 0.0" in str(raised.value)
    assert [m for m in caplog.messages if "is alive, but took" in m] == [caplog.messages[0]]
    assert "RATE_LIMIT_TIMEOUT" in caplog.messages[0]


async def test_a_connection_without_an_answer_is_replaced(
    connection: Connection[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way that swallows everything is left, since a new one may lead somewhere."""
    monkeypatch.setattr(connections, "SILENCE", 0.05)
    await open_stream(connection)
    (a,) = ask(connection, "a", timeout=0.02)
    with pytest.raises(StorageError):
        await a
    async with asyncio.timeout(2):
        while len(server.wires) < 2:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)
    assert server.wires[0].is_closed


async def test_a_long_timeout_is_waited_for(
    connection: Connection[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who gives a server longer than a silent connection is kept gets the answer all the same."""
    monkeypatch.setattr(connections, "SILENCE", 0.02)
    await open_stream(connection)
    (a,) = ask(connection, "a", timeout=5)
    await asyncio.sleep(0.1)
    await server.wire.reply("late")
    assert await a == "late a"
    assert len(server.wires) == 1


@pytest.mark.parametrize("took", [0.27, 0.9, 1.07, 1.19, 12.0])
async def test_the_timeout_that_is_advised_would_do(
    connection: Connection[str], took: float, caplog: pytest.LogCaptureFixture
) -> None:
    """The log advises a time-out that is longer than the answer took."""
    await open_stream(connection)
    (request,) = [Request("a", 1, 0.25, asyncio.get_running_loop().create_future())]
    connection._measure(Call([request], []), took)
    (advised,) = re.findall(r"raise it to ([\d.]+) or more", caplog.text)
    assert took < float(advised) < 1.5 * took


async def test_an_outage_of_long_ago_is_not_remembered(
    connection: Connection[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When attempts have stopped because nobody asked, the next one waits for a new attempt."""
    monkeypatch.setattr(connections, "IDLE", 0.0)
    server.refuses = OSError("Connection refused")
    (a,) = ask(connection, "a")
    with pytest.raises(NotConnectedError, match="Connection refused"):
        await a
    await settled()
    server.refuses = None
    (b,) = ask(connection, "b")
    await settled()
    await server.wire.reply()
    assert await b == "ok b"


async def test_draining_waits_for_answers(connection: Connection[str], server: Server) -> None:
    """A connection that is not needed any more is closed when the last answer is there."""
    await open_stream(connection)
    (a,) = ask(connection, "a")
    draining = asyncio.create_task(connection.drain())
    await asyncio.sleep(0.05)
    assert not server.wire.is_closed
    await server.wire.reply()
    assert await a == "ok a"
    await draining
    assert server.wires[0].is_closed


@pytest.mark.parametrize("host", ["", "?", "other.test"])
async def test_a_redirect_names_a_host_and_takes_no_time_of_its_own(
    server: Server, host: str
) -> None:
    """A redirect without a host means the one that was asked; the time-out goes on running."""

    class Redirecting(Words):
        def read(self, call: Call[str], replies: list[Any]) -> ParsedReplies:
            return ParsedReplies([Redirect((host, 7001), asking=False)] * len(call.requests))

    found: list[tuple[Request[str], Redirect]] = []
    connection = Connection(
        server, Redirecting(), redirect=lambda request, to: found.append((request, to))
    )
    await open_stream(connection)
    ask(connection, "a", timeout=5)
    await asyncio.sleep(0.05)
    await server.wire.reply()
    ((request, redirect),) = found
    assert redirect.address == ("other.test" if "other" in host else "redis.test", 7001)
    assert 4 < request.timeout < 4.99
    await connection.close()


async def test_the_queue_is_bounded(
    connection: Connection[str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than may wait is refused with an error of its own, and harms nobody who waits."""
    monkeypatch.setattr(connections, "MAX_WAITING", 2)
    await open_stream(connection)
    waiting = ask(connection, "a", "b")
    with pytest.raises(QueueFullError, match=r"2 requests already wait for redis\.test:6379"):
        connection.submit("c", 5)
    await server.wire.reply("ok", "ok")
    assert await asyncio.gather(*waiting) == ["ok a", "ok b"]


async def test_close_answers_those_who_wait_and_is_no_end(
    connection: Connection[str], server: Server
) -> None:
    """After close nobody waits for a deadline; the next request opens a new connection."""
    await open_stream(connection)
    tasks = ask(connection, "a", "b")
    await connection.close()
    for task in tasks:
        with pytest.raises(StorageError, match="closed"):
            await task
    assert server.wire.is_closed
    (c,) = ask(connection, "c")
    await settled()
    await server.wire.reply()
    assert await c == "ok c"


def test_works_in_one_event_loop_after_another() -> None:
    """What an earlier asyncio.run() left on its way holds up nothing in the next."""

    async def leave(connection: Connection[str]) -> None:
        await open_stream(connection)
        ask(connection, "a", "b")

    async def work(connection: Connection[str], server: Server) -> str:
        server.opens = asyncio.Event()
        server.opens.set()
        await open_stream(connection)
        (c,) = ask(connection, "c")
        await settled()
        await server.wire.reply()
        answer: str = await c
        await connection.close()
        return answer

    server = Server()
    connection = Connection(server, Words())
    asyncio.run(leave(connection))
    assert asyncio.run(work(connection, server)) == "ok c"
    assert asyncio.run(work(connection, server)) == "ok c"


async def test_callers_keep_their_context_to_themselves(server: Server) -> None:
    """What a caller has in context variables is not seen by the work for other callers."""
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    seen: list[str] = []

    class Spying(Words):
        def read(self, call: Call[str], replies: list[Any]) -> ParsedReplies:
            seen.append(caller.get())
            return super().read(call, replies)

    caller.set("somebody")
    connection = Connection(server, Spying())
    tasks = ask(connection, "a", "b")
    await settled()
    await server.wire.reply("ok", "ok")
    await asyncio.gather(*tasks)
    assert seen == ["nobody"] * len(seen)
    await connection.close()


async def test_a_storage_that_is_dropped_closes_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is left running, and nothing is complained of, when nobody called `close`."""
    before = asyncio.all_tasks()
    async with FakeAsyncRedis(server=FakeServer()) as client:
        storage = RedisStorage(client)
        await storage.hit([charge("9/minute")], timeout=TIMEOUT)
        assert asyncio.all_tasks() > before
        del storage
        await asyncio.sleep(0.05)  # until the clock has ticked for the last time
        gc.collect()
        await settled()
    assert asyncio.all_tasks() == before
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
