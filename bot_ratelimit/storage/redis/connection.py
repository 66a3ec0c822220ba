"""Connection: opens, owns and replaces the only connection to a server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

from bot_ratelimit.errors import ConfigError, NotConnectedError, QueueFullError, StorageError
from bot_ratelimit.storage.base import ServerEvents
from bot_ratelimit.storage.redis.batches import Batches
from bot_ratelimit.storage.redis.clock import ListeningClock
from bot_ratelimit.storage.redis.codec import DecisionCodec
from bot_ratelimit.storage.redis.driver import Endpoint
from bot_ratelimit.storage.redis.encoding import encode_command
from bot_ratelimit.storage.redis.faults import unreachable
from bot_ratelimit.storage.redis.latency import Latency
from bot_ratelimit.storage.redis.request import AGAIN, Call, Redirect, Request, answer_all
from bot_ratelimit.storage.redis.wire import Wire

CONNECT_TIMEOUT: Final = 5.0
"""The maximum time in seconds to open a connection: name look-up, TCP, TLS, authentication."""
CLOCK_WHILE_OPENING: Final = 0.1
"""The clock ticks as for this time-out, in seconds, while the connection is being opened. Otherwise
a loop that is blocked before the first request would use up the time to connect."""
SILENCE: Final = 2.0
"""Seconds without a reply after which a connection is replaced, unless `timeout` is longer."""
LONGEST_BACKOFF: Final = 1.0
"""The longest time from one attempt to connect to the next, in seconds."""
IDLE: Final = 60.0
"""Seconds without a request after which there are no more attempts to connect."""
MAX_WAITING: Final = 20_000
"""The maximum number of requests without an answer; further ones are refused."""


class Connection:
    """Sends requests to a server over a connection that it opens, keeps and replaces itself.

    ::

        submit -> batches -> codec.calls -> wire -> codec.read -> answer
                     ^                                   |
                     +------ nothing was executed -------+

    - A request times out after `timeout` seconds; time in which this loop is busy does not count.
    - A request is written again only if the server says that nothing was executed.

    Args:
        endpoint: Where to connect.
        codec: Encodes requests and decodes replies.
        redirect: Handles requests that another server has to answer.
        on_failure: Called when the connection was lost or could not be opened.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        codec: DecisionCodec,
        *,
        redirect: Callable[[Request, Redirect], None] | None = None,
        on_failure: Callable[[], None] = lambda: None,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._endpoint = endpoint
        self.connect_timeout = connect_timeout
        self.codec: Final = codec
        self._redirect = redirect
        self._on_failure = on_failure
        self.events: Sequence[ServerEvents] = ()
        self.name: Final = endpoint.name
        """The permanent name of the server; see `Endpoint`."""
        self.latency: Final = Latency(lambda: self.where)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batches: Batches | None = None  # of this event loop
        self._reset()

    def _reset(self) -> None:
        self.latency.forget()
        self._opening: asyncio.Task[None] | None = None
        self._opened_at = 0.0  # when the current attempt to connect began
        self._last_request_at = 0.0
        self._failures = 0  # consecutive, to connect or to get an answer once connected
        self.last_error: Exception | None = None
        """Why the last attempt to connect failed; None after a successful one."""

    def route(self, key: str) -> tuple[Connection, None]:
        """Return the connection that serves this key; see `Shards.route`."""
        return self, None

    def holder(self, key: str) -> Connection:
        """Return the connection that serves this key; see `Shards.holder`."""
        return self

    def connections(self) -> list[Connection]:
        """All connections; see `Shards.connections`."""
        return [self]

    def observe(self, events: Sequence[ServerEvents]) -> None:
        """Set who is told of the connection state and of every batch."""
        self.events = events

    @property
    def where(self) -> str:
        """The current address of the server, for logs and errors."""
        return self._endpoint.where

    @property
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return self._batches is not None and self._batches.wire is not None

    @property
    def is_healthy(self) -> bool:
        """Whether it is open, or has not been needed yet."""
        return self.is_open or not (self._failures or self._opening)

    @property
    def host(self) -> str:
        """The host of the open connection; empty without one."""
        wire = None if self._batches is None else self._batches.wire
        return "" if wire is None else wire.host

    def submit(self, item: Any, timeout: float, slot: int | None = None) -> asyncio.Future[Any]:
        """Send an item and return a future of its answer.

        Raises:
            QueueFullError: Too many requests wait already.
            NotConnectedError: There is no connection, and none is expected within the timeout.
        """
        batches = self.open()
        future: asyncio.Future[Any] = asyncio.Future(loop=self._loop)
        self._add(batches, Request(item, self.codec.weigh(item), timeout, future, slot))
        return future

    def enqueue(self, request: Request) -> None:
        """Send a request that already exists; see `submit`."""
        self._add(self.open(), request)

    def _add(self, batches: Batches, request: Request) -> None:
        clock, timeout = batches.clock, request.timeout
        now = self._last_request_at = clock.now()
        request.deadline = now + timeout
        if batches.wire is None and (
            self.last_error is not None or now >= self._opened_at + timeout
        ):
            error = self.last_error or NotConnectedError(f"still connecting to {self.where}")
            raise error.with_traceback(None)  # raised many times: its traceback would grow
        if len(batches.waiting) + batches.sent >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} requests already wait for {self.where}")
        if not clock.is_ticking:
            clock.start(timeout)
        batches.add(request, now)

    def open(self) -> Batches:
        """Start to connect, unless the connection is open or being opened."""
        loop = asyncio.get_running_loop()
        batches = self._batches
        if batches is None or loop is not self._loop:  # another asyncio.run(): nothing is kept
            if self._loop not in (None, loop) and self._loop.is_running():
                raise ConfigError("a RedisStorage in two running event loops: give each its own")
            self.abandon()
            clock = ListeningClock(loop, self._tick)
            batches = Batches(self.codec, clock, self.latency, self._answered)
            self._loop, self._batches = loop, batches
            self._last_request_at = clock.now()
        if batches.wire is None and (self._opening is None or self._opening.done()):
            self._opened_at = batches.clock.now()
            batches.clock.start(CLOCK_WHILE_OPENING)
            self._opening = loop.create_task(self._open(batches), context=Context())
        return batches

    async def close(self) -> None:
        """Close the connection; waiting requests get a StorageError. It can be used again."""
        opening = self._opening if self._loop is asyncio.get_running_loop() else None
        self.abandon()
        for each in self.events:
            each.closed(self.name)
        if opening is not None:
            await asyncio.wait([opening])
        await asyncio.sleep(0)  # asyncio closes the socket in the next turn of the loop

    def dropped(self) -> None:
        """Close the connection, from any thread: nobody uses it any more."""
        if self._batches is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.abandon, context=Context())

    def abandon(self) -> None:
        """Close without waiting, and drop all state, also that of an event loop that has ended."""
        batches, self._batches = self._batches, None
        if batches is not None and self._loop is not None:
            if self._loop.is_closed():
                batches.stop()
            else:
                batches.clock.stop()
                if self._opening is not None:
                    self._opening.cancel()
                error = StorageError("the storage was closed", kind="closed")
                answer_all(batches.close(), error)
        self._reset()

    async def _open(self, batches: Batches) -> None:
        """Connect; retry until it succeeds, or until there are no requests for a while."""
        clock = batches.clock
        took, was_blocked = 0.0, False
        while not self._failures or clock.now() - self._last_request_at < IDLE:
            await asyncio.sleep(_backoff(self._failures) - took)
            began = clock.now()
            try:
                async with asyncio.timeout(self.connect_timeout):
                    wire = await self._endpoint.connect()
            except Exception as error:
                if self._opening is not asyncio.current_task():
                    return  # closed in the meantime: redis-py may swallow a cancellation
                took = clock.now() - began
                timed_out = isinstance(error, TimeoutError)
                if timed_out and took < self.connect_timeout / 2 and not was_blocked:
                    was_blocked = True  # the event loop was, for most of that time: try once more
                    continue
                self._not_opened(batches, unreachable(self.where, error, self.connect_timeout))
            else:
                self._opened(batches, wire)
                return
        # The next request starts from scratch: the error may be long over.
        self._opening, self.last_error, self._failures = None, None, 0

    def _not_opened(self, batches: Batches, error: StorageError) -> None:
        self._failures += 1
        self.last_error = error
        answer_all(batches.take_waiting(), error)
        self._report_disconnected(batches)
        self._on_failure()

    def _opened(self, batches: Batches, wire: Wire) -> None:
        if self._opening is not asyncio.current_task():  # closed in the meantime
            wire.close()
            return
        self._opening = self.last_error = None
        for each in self.events:
            each.connected(self.name)
        wire.attach(batches.received, self._broken)
        batches.start(wire)

    def _broken(self, error: BaseException) -> None:
        """The connection has ended."""
        # If the program has cancelled all its tasks, also that of an `AdapterWire`, the event loop
        # may be ending: the next request opens a new connection.
        reopen = isinstance(error, Exception)
        if not isinstance(error, Exception):
            error = StorageError(f"{self.where}: reading was cancelled", kind="connection")
        self._lost(unreachable(self.where, error, None), reopen=reopen)

    def _lost(self, error: StorageError, *, reopen: bool = True) -> None:
        """Replace the connection: it is unknown what happened to the requests in progress."""
        batches = self._batches
        if batches is None:
            return
        now, sent = batches.clock.now(), batches.stop()
        # A server that ends idle connections works; the next request opens another one.
        if sent or now - batches.opened_at < LONGEST_BACKOFF:
            self._failures += 1
        reopen = reopen and now - self._last_request_at < IDLE
        self._report_disconnected(batches)
        answer_all(sent, error)
        self._on_failure()
        if reopen:
            self.open()

    def _report_disconnected(self, batches: Batches) -> None:
        for each in self.events:
            each.disconnected(self.name)
            each.waiting(self.name, len(batches.waiting))

    def _answered(self, call: Call, replies: list[Any]) -> None:
        """Handle all replies to a call."""
        try:
            answers = self.codec.read(call, replies)
        except Exception as error:  # a bug in the codec; the connection stays in step
            answers = [error] * len(call.requests)
        is_readonly = self._deliver(call.requests, answers)
        if call.ends_batch and call.requests and self._batches is not None:
            took = self._batches.last_reply_at - call.sent
            self.latency.measure(took, call.requests[0].timeout)
            if call.decides and answers[0] is not AGAIN:
                for each in self.events:
                    each.batch_answered(self.name, len(call.requests), took)
        if is_readonly:  # a primary that became a replica: another one is found by connecting
            self._lost(StorageError(f"{self.where} is read-only now", kind="readonly"))
            return
        self._failures = 0
        if call.repair is not None and self._batches is not None:
            self._batches.write([Call((), encode_command(call.repair))])

    def _deliver(self, requests: Sequence[Request], answers: Sequence[Any]) -> bool:
        """Give each request its answer; return whether the server is read-only."""
        again: list[Request] = []
        is_readonly = False
        for request, answer in zip(requests, answers, strict=True):
            if type(answer) is list:  # nearly always
                if not request.future.done():
                    request.future.set_result(answer)
            elif answer is AGAIN:
                again.append(request)
            elif isinstance(answer, Redirect):
                self._follow(answer, request)
            else:
                is_readonly = is_readonly or getattr(answer, "kind", "") == "readonly"
                request.answer(answer)
        if again and self._batches is not None:
            self._batches.put_back(again)
        return is_readonly

    def _follow(self, redirect: Redirect, request: Request) -> None:
        """Hand a request over to another server, once."""
        if self._redirect is None:
            text = (
                f"{self.where} is a node of a Redis Cluster: pass a "
                "redis.asyncio.RedisCluster, which knows all nodes"
            )
            request.answer(ConfigError(text))
        elif request.redirected or (batches := self._batches) is None:
            text = f"{self.where} redirects a request again: slots are being moved"
            request.answer(StorageError(text, kind="moved"))
        else:
            request.redirected = True
            request.timeout = max(request.deadline - batches.clock.now(), 0.0)  # the rest of it
            host, port = redirect.address
            if host in ("", "?"):  # the node knows no name of the other: only the port differs
                host = self.host
            self._redirect(request, Redirect((host, port), redirect.asking))

    def _tick(self, now: float) -> bool:
        """Time out requests that have waited too long; return whether to keep ticking."""
        batches = self._batches
        if batches is None:
            return False
        batches.expire(now, self.where)
        for each in self.events:  # here, so that it costs a decision no time
            each.waiting(self.name, batches.size)
        if batches.calls:
            silence = now - batches.last_reply_at
            if silence >= SILENCE and any((each.deadline or 0) <= now for each in batches.calls):
                text = f"{self.where}: no answer for {silence:.1f} s"
                self._lost(StorageError(text, kind="timeout"))
        is_opening = self._opening is not None and not self._opening.done()
        return (is_opening and self.last_error is None) or not batches.is_idle


def _backoff(failures: int) -> float:
    """Seconds before the next attempt to connect."""
    longest: float = min(0.05 * 2**failures, LONGEST_BACKOFF) if failures > 1 else 0.0
    return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads reconnects
