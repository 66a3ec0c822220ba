"""Connection: the one owner of the connection to a server."""

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
"""Seconds for opening a connection: name look-up, TCP, TLS, authentication."""
SILENCE: Final = 2.0
"""Seconds without a reply after which a connection is replaced, unless `timeout` is longer."""
LONGEST_BACKOFF: Final = 1.0
"""Seconds between two attempts to connect, at most."""
IDLE: Final = 60.0
"""Seconds without a request after which no more attempts are made."""
MAX_WAITING: Final = 20_000
"""Requests that wait for an answer; one more is refused."""
MAX_WEIGHT: Final = 256
"""Of one batch. It holds the server for less than a millisecond; see `DecisionCodec.weigh`."""
SPLIT: Final = 16
"""When so many wait they travel in halves: one is decided while the other is dealt with here."""
FAR: Final = 0.005
"""Seconds to a reply above which a server is far away: requests do not wait for it to leave."""
GATHER: Final = (0.01, 0.001)
"""Seconds for which requests gather at most while two batches are on their way: near, far."""
LOG_EVERY: Final = 60.0


class Connection(Generic[Item]):
    """Asks a server, over a connection that it opens, keeps and replaces by itself.

    - A request is written at once if nothing is on its way. Otherwise it waits for an answer, for
      more requests, or for two milliseconds, whichever is first, and travels with the others. So
      batches grow by themselves under load, and many can be on their way to a distant server.
    - One task reads. Replies come in the order of the commands, so they need no other mark; what
      nobody waits for any more is read all the same, and the connection stays in step.
    - A request is given up when `timeout` seconds have passed without its answer, not counting
      those in which this event loop was away, or busy with other things.
    - A request that was written is never written again, unless the server says that nothing ran.

    Args:
        endpoint: Where the connection leads.
        codec: How requests are put.
        redirect: Takes requests that another server has to answer.
        on_failure: Called when the connection was lost, or could not be opened.
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
        """Hears whether there is a connection, and of every batch."""
        self.latency: float | None = None
        """Seconds that the last answer took."""
        self._context = Context()  # for timers: not that of the caller who happens to set them
        self._finalizer: Any = finalize(self, int)  # nothing to end so far
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
        self._request_count = 0  # requests so far
        self._last_request_at = 0.0
        self._sent: deque[Call[Item]] = deque()
        self._replies: list[Any] = []  # to the first of them, so far
        self._batches = 0  # that are on their way
        self._waiting = 0  # requests in calls that are on their way
        self._opened_at = 0.0  # when connecting began
        self._connected_at = 0.0
        self._failures = 0  # to connect, or to get an answer once connected
        self._last_reply_at = 0.0
        self._round_trip = FAR  # seconds to a reply: the shortest of the last few
        self._slow_reply: float | None = (
            None  # seconds that the last answer took, if it came too late
        )
        self._warned_at = -LOG_EVERY
        self.last_error: Exception | None = None
        """Why the last attempt to connect failed, until one succeeds."""

    @property
    def name(self) -> str:
        """What the server is called as long as it lives; see `Endpoint`."""
        return self._endpoint.name

    @property
    def is_healthy(self) -> bool:
        """Whether it is open, or nobody has needed it so far."""
        return self.is_open or not (self._failures or self._opening)

    @property
    def where(self) -> str:
        """Where the server is now, as logs and errors put it."""
        return self._endpoint.where

    @property
    def codec(self) -> Codec[Item]:
        """How requests are put to this server."""
        return self._codec

    @property
    def is_open(self) -> bool:
        """Whether there is a connection now."""
        return self._stream is not None

    @property
    def host(self) -> str:
        """The host that is connected to now."""
        return "" if self._stream is None else self._stream.host

    def submit(self, item: Item, timeout: float, slot: int | None = None) -> asyncio.Future[Any]:
        """The answer to this item.

        Raises:
            QueueFullError: Too many requests wait already.
            NotConnectedError: There is no connection, and it is not about to be there.
        """
        loop = asyncio.get_running_loop()
        request = Request(item, self._codec.weigh(item), timeout, loop.create_future(), slot)
        self.enqueue(request)
        return request.future

    def enqueue(self, request: Request[Item]) -> None:
        """Ask on behalf of a request; see `submit`."""
        self.open()
        clock = self._clock
        now = self._last_request_at = clock.now()
        request.deadline = now + request.timeout
        if self._stream is None and (
            self.last_error is not None or now >= self._opened_at + request.timeout
        ):
            error = self.last_error or NotConnectedError(f"still connecting to {self.where}")
            raise error.with_traceback(None)  # one is raised many times: its traceback would grow
        if len(self._queue) + self._waiting >= MAX_WAITING:
            raise QueueFullError(f"{MAX_WAITING} requests are waiting for {self.where} already")
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
        """Begin to connect, unless the connection is there or on its way."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another asyncio.run(): nothing of the last can be used
            self._discard()
            self._loop, self._clock = loop, ListeningClock(loop, self._tick)
            self._last_request_at = self._clock.now()
        stream = self._stream
        if stream is not None and not self._sent and stream.is_closed:  # while it was idle
            self._disconnect()
        if self._stream is None and (self._opening is None or self._opening.done()):
            self._opened_at = self._clock.now()
            self._opening = loop.create_task(self._open(), context=Context())

    async def close(self) -> None:
        """Close the connection; those who wait get a StorageError. It can be used again."""
        tasks = [task for task in (self._opening, self._reading) if task is not None]
        same_loop = self._loop is asyncio.get_running_loop()
        self._discard()
        if self.observer is not None:
            self.observer.closed(self.name)
        if same_loop and tasks:
            await asyncio.wait(tasks)

    async def drain(self) -> None:
        """Close the connection when those who wait have their answers, or have given up."""
        try:
            while self._queue or self._sent:  # noqa: ASYNC110 - happens once in a long while
                await asyncio.sleep(LONGEST_TICK)
        finally:
            await self.close()

    def _discard(self) -> None:
        """Leave nothing behind, also of an event loop that has ended."""
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
        """Connect; try until it works, or nobody has asked for a while."""
        while not self._failures or self._clock.now() - self._last_request_at < IDLE:
            await asyncio.sleep(self._backoff())
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    stream = await self._endpoint.connect()
                break
            except Exception as error:
                if self._opening is not asyncio.current_task():
                    return  # closed meanwhile: redis-py may swallow a cancellation
                self._failures += 1
                self.last_error = unreachable(self.where, error, CONNECT_TIMEOUT)
                self._fail(self._take_queue(), self.last_error)
                if self.observer is not None:
                    self.observer.disconnected(self.name)
                    self.observer.waiting(self.name, 0)
                self._on_failure()
        else:  # the next one to ask begins afresh: what was wrong may be long over
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
        return longest * random.uniform(0.5, 1)  # noqa: S311 - so that instances do not come at once

    def _connection_lost(self, error: Exception) -> None:
        """The connection broke: nobody knows what became of what is on its way."""
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
        """Send what may leave at once, and see to it that the rest leaves soon."""
        while self._queue and (not self._batches or self._queued_weight >= MAX_WEIGHT):
            if self._stream is None:
                return
            self._send_batch()
        if not self._queue:
            return
        loop = asyncio.get_running_loop()
        if self._batches == 1 and len(self._queue) >= SPLIT // 2 and self._gathering is None:
            # Those who got their answers in this turn of the loop ask again in this turn.
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
        """The server is far away: what waits for longer travels beside what is on its way."""
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
        """Send one batch, of so many requests at most; of half of all that wait unless given."""
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
            if not request.future.done():  # else its caller gave up before anything was charged
                weight += request.weight
                requests.append(request)
        if requests:
            try:
                calls = self._codec.calls(requests)
            except Exception as error:  # a bug, which is theirs alone
                self._fail(requests, error)
            else:
                self._write([call for call in calls if call.commands])
                for call in calls:
                    if not call.commands:  # nothing can be asked: the answer is known here
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
        except Exception as error:  # the connection is closing, and nobody has told us yet
            self._connection_lost(unreachable(self.where, error, None))

    # ---------------------------------------------------------------------------------------------
    # Receiving

    def _received(self, stream: Stream, reply: Any) -> bool:
        """Take in a reply; whether to go on reading."""
        if stream is not self._stream:
            return False
        if not self._sent:
            raise StorageError("a reply to nothing that was asked")
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
        except Exception as error:  # a bug, which is theirs alone; the connection is in step
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
                        "redis.asyncio.RedisCluster, which knows the others"
                    )
                )
            elif request.redirected:
                text = f"{self.where} redirects what was redirected to it: slots are moving"
                request.answer(StorageError(text, kind="moved"))
            else:
                request.redirected = True
                request.timeout = max(request.deadline - self._clock.now(), 0.0)  # what is left
                self._redirect(request, answer.seen_from(self.host))
        if again:  # before those who came later
            self._queue = deque(sorted([*again, *self._queue], key=_NUMBER))

    # ---------------------------------------------------------------------------------------------
    # Time

    def _tick(self, now: float) -> bool:
        """Give up what waits for too long; whether to look again."""
        for call in self._sent:
            if call.requests and call.deadline <= now:
                self._expire(call.requests, now)
        self._expire(self._queue, now)
        while self._queue and self._queue[0].future.done():
            self._queued_weight -= self._queue.popleft().weight
        if self.observer is not None:  # here, so that it costs a decision nothing
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
        """An answer that comes too late still tells that the server lives, and how slow it is."""
        took = self.latency = now - call.sent
        self._round_trip = max(min(took, self._round_trip * 1.1), 1e-4)
        timeout = call.requests[0].timeout
        self._slow_reply = took if took > timeout else None
        if self._slow_reply is not None and now - self._warned_at >= LOG_EVERY:
            self._warned_at = now
            log.warning(
                "Redis at %s is alive, but took %.2f s to answer, longer than timeout=%g: raise it "
                "to %.2g or more (timeout=, RATE_LIMIT_TIMEOUT), or move the bot closer to it",
                self.where,
                took,
                timeout,
                took * 1.25,
            )


_NUMBER: Final = attrgetter("number")


async def _read(stream: Stream, owner: ref[Connection[Any]]) -> None:
    """Read replies for as long as the connection lasts, and its owner is there.

    A storage that is dropped without `close` must not live on because of its reading task.
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
        with suppress(RuntimeError):  # the loop may be closed already
            task.get_loop().call_soon_threadsafe(task.cancel)
