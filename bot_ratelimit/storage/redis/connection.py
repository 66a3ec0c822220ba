"""Connection: opens, owns and replaces the only connection to a server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from typing import Any, Final, Generic

from bot_ratelimit.errors import ConfigError, NotConnectedError, QueueFullError, StorageError
from bot_ratelimit.storage.base import StorageEvents
from bot_ratelimit.storage.redis.deadline import LONGEST_TICK, ListeningClock
from bot_ratelimit.storage.redis.driver import Endpoint
from bot_ratelimit.storage.redis.faults import unreachable
from bot_ratelimit.storage.redis.latency import Latency
from bot_ratelimit.storage.redis.pipeline import Pipeline
from bot_ratelimit.storage.redis.request import (
    AGAIN,
    Call,
    Codec,
    Item,
    ParsedReplies,
    Redirect,
    Request,
)
from bot_ratelimit.storage.redis.request_queue import RequestQueue

CONNECT_TIMEOUT: Final = 5.0
"""The maximum time in seconds to open a connection: name look-up, TCP, TLS, authentication."""
CLOCK_WHILE_OPENING: Final = 0.1
"""The clock ticks as for this time-out, in seconds, while the connection is being opened. Otherwise
a loop that is blocked before the first request would use up the time to connect."""
SILENCE: Final = 2.0
"""Seconds without a reply after which a connection is replaced, unless `timeout` is longer."""
LONGEST_BACKOFF: Final = 1.0
"""The longest pause between two attempts to connect, in seconds; the time that the failed attempt
took is part of it."""
IDLE: Final = 60.0
"""Seconds without a request after which there are no more attempts to connect."""
MAX_WAITING: Final = 20_000
"""The maximum number of requests that wait for an answer; further ones are refused."""


class Connection(Generic[Item]):
    """Sends requests to a server over a connection that it opens, keeps and replaces itself.

    A request waits in a `RequestQueue` until it is sent, and then in a `Pipeline` until it is
    answered::

        submit -> queue -> codec.calls -> pipeline -> codec.read -> answer
                    ^                                     |
                    +------- nothing was executed --------+

    - A request times out when `timeout` seconds have passed without its answer. Time in which this
      event loop was blocked or busy does not count.
    - A request that was written is never written again, unless the server says that nothing was
      executed.

    Args:
        endpoint: Where to connect.
        codec: Encodes requests and decodes replies.
        redirect: Handles requests that another server has to answer.
        on_failure: Called when the connection was lost or could not be opened.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        codec: Codec[Item],
        *,
        redirect: Callable[[Request[Item], Redirect], None] | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._endpoint = endpoint
        self._codec = codec
        self._redirect = redirect
        self._on_failure = on_failure
        self.events: Sequence[StorageEvents] = ()
        """Are told of the connection state and of every batch."""
        self._latency = Latency(lambda: self.where)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reset()

    def _reset(self) -> None:
        self._latency.forget()
        self._queue = RequestQueue(self._send, self._latency)
        self._pipeline: Pipeline[Item] | None = None  # None without an open connection
        self._opening: asyncio.Task[None] | None = None
        self._opened_at = 0.0  # when the current attempt to connect began
        self._last_request_at = 0.0
        self._failures = 0  # consecutive, to connect or to get an answer once connected
        self.last_error: Exception | None = None
        """Why the last attempt to connect failed; None after a successful one."""

    @property
    def name(self) -> str:
        """The permanent name of the server; see `Endpoint`."""
        return self._endpoint.name

    @property
    def is_healthy(self) -> bool:
        """Whether it is open, or has not been needed yet."""
        return self.is_open or not (self._failures or self._opening)

    @property
    def where(self) -> str:
        """The current address of the server, for logs and errors."""
        return self._endpoint.where

    @property
    def codec(self) -> Codec[Item]:
        """The codec of this connection."""
        return self._codec

    @property
    def latency(self) -> float | None:
        """The latency of the last answer, in seconds; None before the first."""
        return self._latency.last

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return self._pipeline is not None

    @property
    def is_idle(self) -> bool:
        """Whether no request waits, and no call is in progress."""
        return not (self._queue.requests or (self._pipeline and self._pipeline.calls))

    @property
    def host(self) -> str:
        """The host of the open connection; empty without one."""
        return "" if self._pipeline is None else self._pipeline.stream.host

    def submit(self, item: Item, timeout: float, slot: int | None = None) -> asyncio.Future[Any]:
        """Send an item and return a future of its answer.

        Raises:
            QueueFullError: Too many requests wait already.
            NotConnectedError: There is no connection, and none is expected within the timeout.
        """
        loop = asyncio.get_running_loop()
        request = Request(item, self._codec.weigh(item), timeout, loop.create_future(), slot)
        self.enqueue(request)
        return request.future

    def enqueue(self, request: Request[Item]) -> None:
        """Send a request that already exists; see `submit`."""
        self.open()
        clock, queue, pipeline = self._clock, self._queue, self._pipeline
        now = self._last_request_at = clock.now()
        request.deadline = now + request.timeout
        if pipeline is None and (
            self.last_error is not None or now >= self._opened_at + request.timeout
        ):
            error = self.last_error or NotConnectedError(f"still connecting to {self.where}")
            raise error.with_traceback(None)  # raised many times: its traceback would grow
        in_progress = 0 if pipeline is None else pipeline.waiting
        if len(queue.requests) + in_progress >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} requests already wait for {self.where}")
        clock.start(request.timeout)
        queue.add(request, now)

    def open(self) -> None:
        """Start to connect, unless the connection is open or being opened."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another asyncio.run(): nothing of the last can be used
            self._discard()
            self._loop, self._clock = loop, ListeningClock(loop, self._tick)
            self._last_request_at = self._clock.now()
        pipeline = self._pipeline
        if pipeline is not None and not pipeline.calls and pipeline.stream.is_closed:
            self._disconnect()  # the server closed it while it was idle
        if self._pipeline is None and (self._opening is None or self._opening.done()):
            self._opened_at = self._clock.now()
            self._clock.start(CLOCK_WHILE_OPENING)
            self._opening = loop.create_task(self._open(), context=Context())

    async def close(self) -> None:
        """Close the connection; waiting requests get a StorageError. It can be used again."""
        reading = None if self._pipeline is None else self._pipeline.reading
        tasks = [task for task in (self._opening, reading) if task is not None]
        same_loop = self._loop is asyncio.get_running_loop()
        self._discard()
        for each in self.events:
            each.closed(self.name)
        if same_loop and tasks:
            await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Close the connection when all waiting requests have been answered or have timed out."""
        try:
            while not self.is_idle:  # noqa: ASYNC110 - rare: only when a node leaves a cluster
                await asyncio.sleep(LONGEST_TICK)
        finally:
            await self.close()

    def _discard(self) -> None:
        """Drop all state, also that of an event loop that has ended."""
        requests = [*self._queue.requests]
        if self._pipeline is not None:
            requests += self._pipeline.requests
            self._pipeline.close()
        if self._loop is not None and not self._loop.is_closed():
            self._clock.stop()
            self._queue.close()
            if self._opening is not None:
                self._opening.cancel()
            _answer(requests, StorageError("the storage was closed", kind="closed"))
        self._reset()

    # ---------------------------------------------------------------------------------------------
    # Connecting

    async def _open(self) -> None:
        """Connect; retry until it succeeds, or until there are no requests for a while."""
        took, was_blocked = 0.0, False
        while not self._failures or self._clock.now() - self._last_request_at < IDLE:
            await asyncio.sleep(self._backoff() - took)
            began = self._clock.now()
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    stream = await self._endpoint.connect()
                break
            except Exception as error:
                if self._opening is not asyncio.current_task():
                    return  # closed in the meantime: redis-py may swallow a cancellation
                took = self._clock.now() - began
                timed_out = isinstance(error, TimeoutError)
                if timed_out and took < CONNECT_TIMEOUT / 2 and not was_blocked:
                    was_blocked = True  # the event loop was, for most of that time: try once more
                    continue
                self._failures += 1
                self.last_error = unreachable(self.where, error, CONNECT_TIMEOUT)
                _answer(self._queue.take_all(), self.last_error)
                self._report_disconnected()
                self._on_failure()
        else:  # the next request starts from scratch: the error may be long over
            self._opening, self.last_error, self._failures = None, None, 0
            return
        if self._opening is not asyncio.current_task():
            stream.close()
            return
        self._opening = self.last_error = None
        self._pipeline = Pipeline(
            stream, self._clock, self._finish, self._broken, self._reading_cancelled
        )
        for each in self.events:
            each.connected(self.name)
        self._queue.resume(self._pipeline)

    def _backoff(self) -> float:
        if self._failures < 2:
            return 0.0
        longest: float = min(0.05 * 2**self._failures, LONGEST_BACKOFF)
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads reconnects

    def _broken(self, error: Exception) -> None:
        self._lost(unreachable(self.where, error, None))

    def _reading_cancelled(self) -> None:
        """Nobody reads the replies any more, because the program has cancelled all its tasks.

        The next request opens a new connection. Until then nothing is opened: the event loop may be
        ending.
        """
        sent = [] if self._pipeline is None else self._pipeline.requests
        error = StorageError(f"{self.where}: reading was cancelled", kind="connection")
        _answer([*sent, *self._queue.take_all()], error)
        self._disconnect()

    def _lost(self, error: Exception) -> None:
        """Replace the connection: it is unknown what happened to the requests in progress."""
        sent = [] if self._pipeline is None else self._pipeline.requests
        self._failures += 1
        self._disconnect()
        _answer(sent, error)
        self._on_failure()
        self.open()

    def _disconnect(self) -> None:
        if self._pipeline is not None:
            self._pipeline.close()
        self._pipeline = None
        self._queue.pause()
        self._report_disconnected()

    def _report_disconnected(self) -> None:
        for each in self.events:
            each.disconnected(self.name)
            each.waiting(self.name, len(self._queue.requests))

    # ---------------------------------------------------------------------------------------------
    # Sending and answering

    def _send(self, requests: Sequence[Request[Item]]) -> None:
        """Send a batch."""
        try:
            calls = self._codec.calls(requests)
        except Exception as error:  # a bug in the codec; other requests are not affected
            _answer(requests, error)
            return
        self._write([call for call in calls if call.commands])
        for call in calls:
            if not call.commands:  # nothing to send: the codec knows the answer
                self._deliver(call, self._codec.read(call, []))

    def _write(self, calls: Sequence[Call[Item]]) -> None:
        if self._pipeline is not None and calls:
            self._pipeline.write(calls)

    def _finish(self, call: Call[Item], replies: list[Any], now: float) -> None:
        """Handle all replies to a call."""
        try:
            parsed = self._codec.read(call, replies)
        except Exception as error:  # a bug in the codec; the connection stays in step
            _answer(call.requests, error)
            parsed = ParsedReplies(())
        else:
            self._deliver(call, parsed)
        if call.requests and call.ends_batch:
            took = now - call.sent
            self._latency.measure(took, call.requests[0].timeout, now)
            has_run = parsed.answers and parsed.answers[0] is not AGAIN
            if call.decides and has_run:
                for each in self.events:
                    each.batch_answered(self.name, len(call.requests), took)
        if parsed.disconnect:
            self._lost(StorageError(parsed.disconnect, kind="readonly"))
            return
        self._failures = 0
        if parsed.repairs:
            self._write([Call((), parsed.repairs)])
        if call.ends_batch or self._queue.fills_batch:
            self._queue.flush()

    def _deliver(self, call: Call[Item], parsed: ParsedReplies) -> None:
        again: list[Request[Item]] = []
        for request, answer in zip(call.requests, parsed.answers, strict=True):
            if answer is AGAIN:
                again.append(request)
            elif isinstance(answer, Redirect):
                self._follow(answer, request)
            else:
                request.answer(answer)
        if again:
            self._queue.put_back(again)

    def _follow(self, redirect: Redirect, request: Request[Item]) -> None:
        """Hand a request over to another server, once."""
        if self._redirect is None:
            text = (
                f"{self.where} is a node of a Redis Cluster: pass a "
                "redis.asyncio.RedisCluster, which knows all nodes"
            )
            request.answer(ConfigError(text))
        elif request.redirected:
            text = f"{self.where} redirects a request again: slots are being moved"
            request.answer(StorageError(text, kind="moved"))
        else:
            request.redirected = True
            request.timeout = max(request.deadline - self._clock.now(), 0.0)  # the rest of it
            self._redirect(request, redirect.seen_from(self.host))

    # ---------------------------------------------------------------------------------------------
    # Time

    def _tick(self, now: float) -> bool:
        """Time out requests that have waited too long; return whether to keep ticking."""
        queue, pipeline = self._queue, self._pipeline
        for call in () if pipeline is None else pipeline.calls:
            if call.requests and call.deadline <= now:
                self._expire(call.requests, now)
        self._expire(queue.requests, now)
        queue.drop_answered()
        in_progress = 0 if pipeline is None else pipeline.waiting
        for each in self.events:  # here, so that it costs a decision no time
            each.waiting(self.name, in_progress + len(queue.requests))
        if pipeline is not None and pipeline.calls:
            silence = now - pipeline.last_reply_at
            if silence >= SILENCE and pipeline.calls[0].deadline <= now:
                text = f"{self.where}: no answer for {silence:.1f} s"
                self._lost(StorageError(text, kind="timeout"))
        is_opening = self._opening is not None and not self._opening.done()
        return (is_opening and self.last_error is None) or not self.is_idle

    def _expire(self, requests: Iterable[Request[Item]], now: float) -> None:
        for request in requests:
            if request.deadline <= now and not request.future.done():
                request.answer(self._timeout_error(request))

    def _timeout_error(self, request: Request[Item]) -> StorageError:
        timeout, late = request.timeout, self._latency.late
        if self._pipeline is None or request.deadline - timeout < self._pipeline.opened_at:
            return NotConnectedError(f"not connected to {self.where} within {timeout:g} s")
        if late is None:
            text = f"no answer from {self.where} within {timeout:g} s"
        else:
            text = f"{self.where} takes {late:.2f} s to answer, the timeout is {timeout:g} s"
        return StorageError(text, kind="timeout")


def _answer(requests: Iterable[Request[Any]], answer: Exception) -> None:
    for request in requests:
        request.answer(answer)
