"""Connection: opens, owns and replaces the only connection to a server."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextvars import Context
from copy import copy
from time import monotonic
from typing import Any, Final

from bot_ratelimit.errors import ConfigError, NotConnectedError, QueueFullError, StorageError
from bot_ratelimit.storage.base import ServerEvents
from bot_ratelimit.storage.loops import Seldom
from bot_ratelimit.storage.redis.batches import Batches
from bot_ratelimit.storage.redis.clock import ListeningClock
from bot_ratelimit.storage.redis.codec import DecisionCodec
from bot_ratelimit.storage.redis.driver import Endpoint
from bot_ratelimit.storage.redis.encoding import encode_command
from bot_ratelimit.storage.redis.faults import unreachable
from bot_ratelimit.storage.redis.request import AGAIN, Call, Redirect, Request, answer_all
from bot_ratelimit.storage.redis.wire import Wire

log = logging.getLogger("bot_ratelimit")

CONNECT_TIMEOUT: Final = 5.0
"""The maximum time in seconds to open a connection: name look-up, TCP, TLS, authentication."""
SILENCE: Final = 2.0
"""Seconds without a reply after which a connection is replaced, unless `timeout` is longer."""
LONGEST_BACKOFF: Final = 1.0
"""The longest time from one attempt to connect to the next, in seconds."""
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
    - `redirect` gets requests that another server has to answer.
    - `on_change` is called when the connection was opened or lost, or could not be opened.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        codec: DecisionCodec,
        *,
        redirect: Callable[[Request, Redirect], None] | None = None,
        on_change: Callable[[], None] = lambda: None,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._endpoint = endpoint
        self.connect_timeout = connect_timeout
        self.codec: Final = codec
        self._redirect = redirect
        self._on_change = on_change
        self.events: Sequence[ServerEvents] = ()
        self.name: Final = endpoint.name
        """The permanent name of the server; see `Endpoint`."""
        self.latency: float | None = None
        """How long the last answer took in seconds; None before the first."""
        self._seldom = Seldom()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batches: Final = Batches(codec, ListeningClock(self._tick), self._answered)
        self._reset()

    def _reset(self) -> None:
        self._seldom.forget()
        self._is_late = False  # whether the last answer took longer than its caller waited
        self._opening: asyncio.Task[None] | None = None
        self._failures = 0  # consecutive, to connect or to get an answer once connected
        self._in_vain = 0.0  # how long a request has waited for the connection that is being opened
        self.last_error: Exception | None = None
        """Why the last attempt to connect failed; None once it succeeded."""

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
        return self._batches.wire is not None

    @property
    def is_healthy(self) -> bool:
        """Whether it is open, or has not been needed yet."""
        return self.is_open or not (self._failures or self._opening)

    @property
    def problem(self) -> str:
        """Why it cannot be opened; empty if it can, or if its event loop has ended."""
        is_over = self._loop is not None and self._loop.is_closed()
        return "" if self.last_error is None or is_over else str(self.last_error)

    @property
    def host(self) -> str:
        """The host of the open connection; empty without one."""
        return "" if self._batches.wire is None else self._batches.wire.host

    def submit(self, item: Any, timeout: float) -> asyncio.Future[Any]:
        """Send an item and return a future of its answer.

        Raises:
            QueueFullError: Too many requests wait already.
            NotConnectedError: There is no connection, and none is expected within the timeout.
        """
        request = Request(item, timeout)
        self.enqueue(request)
        return request.future

    def enqueue(self, request: Request) -> None:
        """Send a request that already exists; see `submit`."""
        batches, left = self._batches, request.left
        if batches.wire is None or self._loop is not asyncio.get_running_loop():
            self.open()
            if self.last_error is not None:
                raise copy(self.last_error)  # each with a traceback of its own
            if left <= self._in_vain:
                raise self._timed_out(request.timeout)
        now = batches.clock.now()
        request.deadline = now + left
        if len(batches.waiting) + batches.sent >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} requests already wait for {self.where}")
        batches.clock.start(left)
        batches.add(request, now)

    def open(self) -> None:
        """Start to connect, unless the connection is open or being opened."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another asyncio.run(): nothing is kept
            if self._loop is not None and self._loop.is_running():
                raise ConfigError("a RedisStorage in two running event loops: give each its own")
            if self._loop is not None:
                self.abandon()
            self._loop = loop
        if self._batches.wire is None and (self._opening is None or self._opening.done()):
            self._opening = loop.create_task(self._open(), context=Context())

    async def close(self) -> None:
        """Close the connection; waiting requests get a StorageError. It can be used again."""
        opening = self._opening if self._loop is asyncio.get_running_loop() else None
        self.abandon()
        if opening is not None:
            await asyncio.wait([opening])
        await asyncio.sleep(0)  # asyncio closes the socket in the next turn of the loop

    def dropped(self) -> None:
        """Close the connection, from any thread: nobody uses it any more."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.abandon, context=Context())

    def abandon(self) -> None:
        """Close without waiting, and drop all state, also that of an event loop that has ended."""
        requests, opening = self._batches.close(), self._opening
        self._reset()
        if self._loop is not None and not self._loop.is_closed():
            if opening is not None:
                opening.cancel()
            answer_all(requests, StorageError("the storage was closed", kind="closed"))
        for each in self.events:
            each.closed(self.name)

    async def _open(self) -> None:
        """Connect; retry until it succeeds."""
        took, was_blocked = 0.0, False
        while True:
            await asyncio.sleep(_backoff(self._failures) - took)
            began = monotonic()
            try:
                async with asyncio.timeout(self.connect_timeout):
                    wire = await self._endpoint.connect()
            except Exception as error:
                if self._opening is not asyncio.current_task():
                    return  # closed in the meantime: redis-py may swallow a cancellation
                took = monotonic() - began
                if took > self.connect_timeout * 1.1 and not was_blocked:
                    was_blocked = True  # the event loop was: try once more
                    continue
                self._failures += 1
                self.last_error = unreachable(self.where, error, self.connect_timeout)
                answer_all(self._batches.take_waiting(), self.last_error)
                self._report_disconnected()
                self._on_change()
            else:
                self._opened(wire)
                return

    def _opened(self, wire: Wire) -> None:
        if self._opening is not asyncio.current_task():  # closed in the meantime
            wire.close()
            return
        self._opening, self.last_error, self._in_vain = None, None, 0.0
        for each in self.events:
            each.connected(self.name)
        wire.attach(self._batches.received, self._broken)
        self._batches.start(wire)
        self._on_change()

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
        sent = self._batches.stop()
        # A server that ends idle connections works.
        if sent or self._batches.clock.now() - self._batches.opened_at < LONGEST_BACKOFF:
            self._failures += 1
        self._report_disconnected()
        answer_all(sent, error)
        self._on_change()
        if reopen:
            self.open()

    def _report_disconnected(self) -> None:
        for each in self.events:
            each.disconnected(self.name)
            each.waiting(self.name, len(self._batches.waiting))

    def _answered(self, call: Call, replies: list[Any]) -> None:
        """Handle all replies to a call."""
        try:
            answers = self.codec.read(call, replies)
        except Exception as error:  # a bug in the codec; the connection stays in step
            answers = [error] * len(call.requests)
        is_readonly = self._deliver(call.requests, answers)
        if call.requests:
            took = self.latency = self._batches.last_reply_at - call.sent
            timeout = call.requests[0].timeout
            self._is_late = took > timeout
            if self._is_late and self._seldom():
                self._log_late(took, timeout)
            if call.decides and answers[0] is not AGAIN:
                for each in self.events:
                    each.batch_answered(self.name, len(call.requests), took)
        if is_readonly:  # a primary that became a replica: another one is found by connecting
            self._lost(StorageError(f"{self.where} is read-only now", kind="readonly"))
            return
        self._failures = 0
        if call.repair is not None:
            self._batches.write([Call((), encode_command(call.repair))])

    def _log_late(self, took: float, timeout: float) -> None:
        """Log that the server is alive, and how slow it is."""
        log.warning(
            "Redis at %s is alive, but took %.2f s to answer, longer than its caller waited "
            "(%.2g s): raise the timeout to %.2g or more (timeout=, RATE_LIMIT_TIMEOUT), or "
            "move the bot closer to Redis",
            self.where,
            took,
            timeout,
            # Four times the round trip, as docs/storages.md says; less after a long stall.
            max(took * 1.25, min(took * 4, 1.0)),
        )

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
        elif request.redirected:
            text = f"{self.where} redirects a request again: slots are being moved"
            request.answer(StorageError(text, kind="moved"))
        else:
            request.redirected = True
            request.left = max(request.deadline - self._batches.clock.now(), 0.0)
            host, port = redirect.address
            if host in ("", "?"):  # the node knows no name of the other: only the port differs
                host = self.host
            self._redirect(request, redirect._replace(address=(host, port)))

    def _tick(self, now: float) -> bool:
        """Time out requests that have waited too long; return whether to keep ticking."""
        batches = self._batches
        sent, unsent = batches.expired(now)
        for request in (*sent, *unsent):
            request.answer(self._timed_out(request.timeout))
        if batches.wire is None:  # nobody else waits that long until it is known how this ends
            self._in_vain = max([self._in_vain, *(each.left for each in unsent)])
        for each in self.events:  # here, so that it costs a decision no time
            each.waiting(self.name, batches.size)
        silence = now - batches.last_reply_at
        if sent and silence >= SILENCE:
            self._lost(StorageError(f"{self.where}: no answer for {silence:.1f} s", kind="timeout"))
        return batches.size > 0

    def _timed_out(self, timeout: float) -> StorageError:
        """The error of a request that got no answer; without a connection it was never sent."""
        if not self.is_open:
            return NotConnectedError(f"not connected to {self.where} within {timeout:g} s")
        if self._is_late:
            text = f"takes {self.latency:.2f} s to answer, the timeout is {timeout:g} s"
            return StorageError(f"{self.where} {text}", kind="timeout")
        return StorageError(f"no answer from {self.where} within {timeout:g} s", kind="timeout")


def _backoff(failures: int) -> float:
    """Seconds before the next attempt to connect."""
    longest: float = min(0.05 * 2**failures, LONGEST_BACKOFF) if failures > 1 else 0.0
    return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads reconnects
