"""Connection: opens, owns and replaces the only connection to a server."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from operator import attrgetter
from typing import Any, Final, Generic
from weakref import finalize, ref

from bot_ratelimit.errors import ConfigError, NotConnectedError, QueueFullError, StorageError
from bot_ratelimit.observer import Observer
from bot_ratelimit.storage import encoding
from bot_ratelimit.storage.deadline import LONGEST_TICK, ListeningClock
from bot_ratelimit.storage.driver import Endpoint, Stream
from bot_ratelimit.storage.faults import unreachable
from bot_ratelimit.storage.request import AGAIN, Call, Codec, Item, ParsedReplies, Redirect, Request

log = logging.getLogger("bot_ratelimit")

CONNECT_TIMEOUT: Final = 5.0
"""The maximum time in seconds to open a connection: name look-up, TCP, TLS, authentication."""
SILENCE: Final = 2.0
"""Seconds without a reply after which a connection is replaced, unless `timeout` is longer."""
LONGEST_BACKOFF: Final = 1.0
"""The longest pause between two attempts to connect, in seconds."""
IDLE: Final = 60.0
"""Seconds without a request after which there are no more attempts to connect."""
MAX_WAITING: Final = 20_000
"""The maximum number of requests that wait for an answer; further ones are refused."""
MAX_WEIGHT: Final = 256
"""The maximum weight of a batch. It occupies the server for less than a millisecond; see
`DecisionCodec.weigh`."""
SPLIT: Final = 16
"""From this many waiting requests on, they are sent in halves: the server decides one half while
this process handles the other."""
FAR: Final = 0.005
"""The round trip in seconds above which a server counts as far away: requests do not wait for the
batch in progress."""
GATHER: Final = (0.01, 0.001)
"""The longest time in seconds that requests are gathered while batches are in progress: for a near
and for a far server."""
LOG_EVERY: Final = 60.0


class Connection(Generic[Item]):
    """Sends requests to a server over a connection that it opens, keeps and replaces itself.

    - A request is written at once if none is in progress. Otherwise it waits for the next answer,
      for more requests, or for a few milliseconds, whichever comes first, and is sent together with
      the others. So batches grow under load, and several batches can be in progress to a distant
      server.
    - One task reads. Replies come in the order of the commands, so they need no other
      identification. A reply that no caller waits for any more is read all the same, so the
      connection stays in step.
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
        self.observer: Observer | None = None
        """Is told of the connection state and of every batch."""
        self.latency: float | None = None
        """The latency of the last answer, in seconds; None before the first."""
        self._context = Context()  # for timers, so that they do not keep a caller's context
        self._finalizer: Any = finalize(self, int)  # no task to cancel yet
        self._finalizer.atexit = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reset()

    def _reset(self) -> None:
        self._stream: Stream | None = None
        self._opening: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._gathering: asyncio.Handle | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._queue: deque[Request[Item]] = deque()
        self._queued_weight = 0
        self._queued_at = 0.0
        self._request_count = 0  # the number of requests so far
        self._last_request_at = 0.0
        self._sent: deque[Call[Item]] = deque()
        self._replies: list[Any] = []  # the replies to the first call so far
        self._batches = 0  # in progress
        self._waiting = 0  # requests in batches in progress
        self._opened_at = 0.0  # when the current attempt to connect began
        self._connected_at = 0.0
        self._failures = 0  # consecutive, to connect or to get an answer once connected
        self._last_reply_at = 0.0
        self._round_trip = FAR  # the shortest recent latency in seconds
        self._slow_reply: float | None = (
            None  # the latency of the last answer in seconds, if it came too late
        )
        self._warned_at = -LOG_EVERY
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
    def is_open(self) -> bool:
        """Whether the connection is open."""
        return self._stream is not None

    @property
    def host(self) -> str:
        """The host of the open connection; empty without one."""
        return "" if self._stream is None else self._stream.host

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
        clock = self._clock
        now = self._last_request_at = clock.now()
        request.deadline = now + request.timeout
        if self._stream is None and (
            self.last_error is not None or now >= self._opened_at + request.timeout
        ):
            error = self.last_error or NotConnectedError(f"still connecting to {self.where}")
            raise error.with_traceback(None)  # raised many times: its traceback would grow
        if len(self._queue) + self._waiting >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} requests already wait for {self.where}")
        if not self._queue:
            self._queued_at = now
        self._request_count += 1
        request.number = self._request_count
        self._queue.append(request)
        self._queued_weight += request.weight
        clock.start(request.timeout)
        if self._stream is not None:
            self._send()

    def open(self) -> None:
        """Start to connect, unless the connection is open or being opened."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another asyncio.run(): nothing of the last can be used
            self._discard()
            self._loop, self._clock = loop, ListeningClock(loop, self._tick)
            self._last_request_at = self._clock.now()
        stream = self._stream
        if stream is not None and not self._sent and stream.is_closed:  # closed while idle
            self._disconnect()
        if self._stream is None and (self._opening is None or self._opening.done()):
            self._opened_at = self._clock.now()
            self._opening = loop.create_task(self._open(), context=Context())

    async def close(self) -> None:
        """Close the connection; waiting requests get a StorageError. It can be used again."""
        tasks = [task for task in (self._opening, self._reading) if task is not None]
        same_loop = self._loop is asyncio.get_running_loop()
        self._discard()
        if self.observer is not None:
            self.observer.closed(self.name)
        if same_loop and tasks:
            await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Close the connection when all waiting requests have been answered or have timed out."""
        try:
            while self._queue or self._sent:  # noqa: ASYNC110 - rare: only when a node leaves a cluster
                await asyncio.sleep(LONGEST_TICK)
        finally:
            await self.close()

    def _discard(self) -> None:
        """Drop all state, also that of an event loop that has ended."""
        running = self._loop is not None and not self._loop.is_closed()
        requests = [*self._queue, *(each for call in self._sent for each in call.requests)]
        if self._stream is not None:
            self._stream.close()
        if running:
            self._clock.stop()
            for task in (self._opening, self._reading, self._gathering, self._flush):
                if task is not None:
                    task.cancel()
            for request in requests:
                request.answer(StorageError("the storage was closed", kind="closed"))
        self._reset()

    # ---------------------------------------------------------------------------------------------
    # Connecting

    async def _open(self) -> None:
        """Connect; retry until it succeeds, or until there are no requests for a while."""
        while not self._failures or self._clock.now() - self._last_request_at < IDLE:
            await asyncio.sleep(self._backoff())
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    stream = await self._endpoint.connect()
                break
            except Exception as error:
                if self._opening is not asyncio.current_task():
                    return  # closed in the meantime: redis-py may swallow a cancellation
                self._failures += 1
                self.last_error = unreachable(self.where, error, CONNECT_TIMEOUT)
                self._fail(self._take_queue(), self.last_error)
                if self.observer is not None:
                    self.observer.disconnected(self.name)
                    self.observer.waiting(self.name, 0)
                self._on_failure()
        else:  # the next request starts from scratch: the error may be long over
            self._opening, self.last_error, self._failures = None, None, 0
            return
        if self._opening is not asyncio.current_task():
            stream.close()
            return
        self._opening, self._stream, self.last_error = None, stream, None
        self._last_reply_at = self._connected_at = self._clock.now()
        self._replies.clear()
        if self.observer is not None:
            self.observer.connected(self.name)
        self._reading = asyncio.create_task(_read(stream, ref(self)), context=Context())
        self._finalizer.detach()
        self._finalizer = finalize(self, _cancel, self._reading)
        self._finalizer.atexit = False
        self._send()

    def _backoff(self) -> float:
        if self._failures < 2:
            return 0.0
        longest: float = min(0.05 * 2**self._failures, LONGEST_BACKOFF)
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads reconnects

    def _connection_lost(self, error: Exception) -> None:
        """Handle a broken connection: it is unknown what happened to the requests in progress."""
        sent = [request for call in self._sent for request in call.requests]
        self._failures += 1
        self._disconnect()
        self._fail(sent, error)
        self._on_failure()
        self.open()

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._reading is not None and self._reading is not asyncio.current_task():
            self._reading.cancel()
        self._stream = self._reading = None
        self._sent.clear()
        self._batches = self._waiting = 0
        if self.observer is not None:
            self.observer.disconnected(self.name)
            self.observer.waiting(self.name, len(self._queue))

    @staticmethod
    def _fail(requests: Sequence[Request[Item]], error: Exception) -> None:
        for request in requests:
            request.answer(error)

    def _take_queue(self) -> list[Request[Item]]:
        requests = list(self._queue)
        self._queue.clear()
        self._queued_weight = 0
        return requests

    # ---------------------------------------------------------------------------------------------
    # Sending

    def _send(self) -> None:
        """Send what may be sent at once, and schedule the rest."""
        while self._queue and (not self._batches or self._queued_weight >= MAX_WEIGHT):
            if self._stream is None:
                return
            self._send_batch()
        if not self._queue:
            return
        loop = asyncio.get_running_loop()
        if self._batches == 1 and len(self._queue) >= SPLIT // 2 and self._gathering is None:
            # Callers that get their answers in this turn of the loop usually ask again in the same
            # turn.
            self._gathering = loop.call_soon(self._send_gathered, context=self._context)
        if self._flush is None:
            wait = GATHER[self._round_trip > FAR]
            self._flush = loop.call_later(wait, self._send_overdue, context=self._context)

    def _send_gathered(self) -> None:
        self._gathering = None
        if self._stream is not None and self._queue and self._batches < 2:
            self._send_batch()
            self._send()

    def _send_overdue(self) -> None:
        """Send what has waited long enough, beside a batch in progress: the server is far away."""
        self._flush = None
        if self._stream is None or not self._queue:
            return
        wait = self._queued_at + GATHER[self._round_trip > FAR] - self._clock.now()
        if wait > 0:
            loop = asyncio.get_running_loop()
            self._flush = loop.call_later(wait, self._send_overdue, context=self._context)
            return
        while self._queue and self._stream is not None:
            self._send_batch(len(self._queue))

    def _send_batch(self, size: int = 0) -> None:
        """Send one batch of `size` requests at most; by default half of all waiting requests."""
        total = len(self._queue) + self._waiting
        size = size or (total if total < SPLIT else (total + 1) // 2)
        weight = 0
        requests: list[Request[Item]] = []
        while self._queue and len(requests) < size:
            request = self._queue[0]
            if requests and weight + request.weight > MAX_WEIGHT:
                break
            self._queue.popleft()
            self._queued_weight -= request.weight
            if not request.future.done():  # else its caller gave up before it was charged
                weight += request.weight
                requests.append(request)
        if requests:
            try:
                calls = self._codec.calls(requests)
            except Exception as error:  # a bug in the codec; other requests are not affected
                self._fail(requests, error)
            else:
                self._write([call for call in calls if call.commands])
                for call in calls:
                    if not call.commands:  # nothing to send: the codec knows the answer
                        self._deliver(call, self._codec.read(call, []))

    def _write(self, calls: Sequence[Call[Item]]) -> None:
        stream, now = self._stream, self._clock.now()
        packed: list[bytes] = []
        if stream is None or not calls:
            return
        if not self._sent:
            self._last_reply_at = now
        for call in calls:
            call.sent = now
            self._waiting += len(call.requests)
            packed += map(encoding.encode_command, call.commands)
        self._sent += calls
        self._batches += 1
        calls[-1].ends_batch = True
        try:
            stream.write(b"".join(packed))
        except Exception as error:  # the connection is closing, and asyncio has not reported it yet
            self._connection_lost(unreachable(self.where, error, None))

    # ---------------------------------------------------------------------------------------------
    # Receiving

    def _received(self, stream: Stream, reply: Any) -> bool:
        """Handle a reply; return whether to continue reading."""
        if stream is not self._stream:
            return False
        if not self._sent:
            raise StorageError("a reply without a request")
        replies = self._replies
        replies.append(reply)
        if len(replies) == self._sent[0].replies:
            self._replies = []
            self._finish_call(self._sent.popleft(), replies)
        return stream is self._stream

    def _connection_error(self, stream: Stream, error: Exception) -> None:
        if stream is self._stream:
            self._connection_lost(unreachable(self.where, error, None))

    def _finish_call(self, call: Call[Item], replies: list[Any]) -> None:
        now = self._clock.now()
        self._last_reply_at = now
        self._waiting -= len(call.requests)
        self._batches -= call.ends_batch
        try:
            parsed = self._codec.read(call, replies)
        except Exception as error:  # a bug in the codec; the connection stays in step
            self._fail(call.requests, error)
            parsed = ParsedReplies(())
        else:
            self._deliver(call, parsed)
        if call.requests and call.ends_batch:
            self._measure(call, now)
            if self.observer is not None and call.decides and parsed.answers[0] is not AGAIN:
                self.observer.batch_answered(self.name, len(call.requests), now - call.sent)
        if parsed.disconnect:
            self._connection_lost(StorageError(parsed.disconnect, kind="readonly"))
            return
        self._failures = 0
        if parsed.repairs:
            self._write([Call((), parsed.repairs)])
        if call.ends_batch or self._queued_weight >= MAX_WEIGHT:
            self._send()

    def _deliver(self, call: Call[Item], parsed: ParsedReplies) -> None:
        again: list[Request[Item]] = []
        for request, answer in zip(call.requests, parsed.answers, strict=True):
            if answer is AGAIN:
                again.append(request)
                self._queued_weight += request.weight
            elif not isinstance(answer, Redirect):
                request.answer(answer)
            elif self._redirect is None:
                request.answer(
                    ConfigError(
                        f"{self.where} is a node of a Redis Cluster: pass a "
                        "redis.asyncio.RedisCluster, which knows all nodes"
                    )
                )
            elif request.redirected:
                text = f"{self.where} redirects a request again: slots are being moved"
                request.answer(StorageError(text, kind="moved"))
            else:
                request.redirected = True
                request.timeout = max(request.deadline - self._clock.now(), 0.0)  # the rest of it
                self._redirect(request, answer.seen_from(self.host))
        if again:  # before later requests
            self._queue = deque(sorted([*again, *self._queue], key=_NUMBER))

    # ---------------------------------------------------------------------------------------------
    # Time

    def _tick(self, now: float) -> bool:
        """Time out requests that have waited too long; return whether to keep ticking."""
        for call in self._sent:
            if call.requests and call.deadline <= now:
                self._expire(call.requests, now)
        self._expire(self._queue, now)
        while self._queue and self._queue[0].future.done():
            self._queued_weight -= self._queue.popleft().weight
        if self.observer is not None:  # here, so that it costs a decision no time
            self.observer.waiting(self.name, self._waiting + len(self._queue))
        silence = now - self._last_reply_at
        if self._sent and silence >= SILENCE and self._sent[0].deadline <= now:
            self._connection_lost(
                StorageError(f"{self.where}: no answer for {silence:.1f} s", kind="timeout")
            )
        return bool(self._sent or self._queue)

    def _expire(self, requests: Iterable[Request[Item]], now: float) -> None:
        for request in requests:
            if request.deadline <= now and not request.future.done():
                request.answer(self._timeout_error(request))

    def _timeout_error(self, request: Request[Item]) -> StorageError:
        timeout, slow = request.timeout, self._slow_reply
        if self._stream is None or request.deadline - timeout < self._connected_at:
            return NotConnectedError(f"not connected to {self.where} within {timeout:g} s")
        if slow is None:
            text = f"no answer from {self.where} within {timeout:g} s"
        else:
            text = f"{self.where} takes {slow:.2f} s to answer, the timeout is {timeout:g} s"
        return StorageError(text, kind="timeout")

    def _measure(self, call: Call[Item], now: float) -> None:
        """Record the latency. A late answer still shows that the server is alive, and how slow."""
        took = self.latency = now - call.sent
        self._round_trip = max(min(took, self._round_trip * 1.1), 1e-4)
        timeout = call.requests[0].timeout
        self._slow_reply = took if took > timeout else None
        if self._slow_reply is not None and now - self._warned_at >= LOG_EVERY:
            self._warned_at = now
            log.warning(
                "Redis at %s is alive, but took %.2f s to answer, longer than timeout=%g: raise it "
                "to %.2g or more (timeout=, RATE_LIMIT_TIMEOUT), or move the bot closer to Redis",
                self.where,
                took,
                timeout,
                took * 1.25,
            )


_NUMBER: Final = attrgetter("number")


async def _read(stream: Stream, owner: ref[Connection[Any]]) -> None:
    """Read replies as long as the connection and its owner exist.

    The task holds only a weak reference: a storage that is dropped without `close` must not be kept
    alive by its reading task.
    """
    try:
        while True:
            reply = await stream.read()
            connection = owner()
            if connection is None or not connection._received(stream, reply):
                return
            del connection
    except Exception as error:
        if (connection := owner()) is not None:
            connection._connection_error(stream, error)
    finally:
        stream.close()


def _cancel(task: asyncio.Task[None]) -> None:
    if not task.done():
        with suppress(RuntimeError):  # the event loop may be closed already
            task.get_loop().call_soon_threadsafe(task.cancel)
