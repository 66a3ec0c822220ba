"""Batches: which requests wait for a server, which are on their way, and what is sent together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Final

from bot_ratelimit.errors import StorageError
from bot_ratelimit.storage.redis.clock import ListeningClock
from bot_ratelimit.storage.redis.codec import DecisionCodec
from bot_ratelimit.storage.redis.request import Call, Request, answer_all
from bot_ratelimit.storage.redis.wire import Wire

MAX_BATCH: Final = 64
"""The maximum number of requests in a batch. It occupies the server for less than a millisecond, or
for two if none is a single fixed window; the next batch is written meanwhile."""
GATHER: Final = 0.001
"""The longest time in seconds that requests are gathered while batches are in progress."""


class Batches:
    """Sends requests over one wire, together where that costs nobody time.

    A request is sent at once if nothing is in progress. Otherwise it is sent together with others
    as soon as everything in progress is answered, or they fill a batch, or it has waited for a
    millisecond: then the server is far away. So batches grow under load, and several can be in
    progress. Replies come in the order of the commands. A reply that no caller waits for any more
    is read all the same, so the wire stays in step.
    """

    def __init__(
        self,
        codec: DecisionCodec,
        clock: ListeningClock,
        on_replies: Callable[[Call, list[Any]], None],
    ) -> None:
        self._codec = codec
        self.clock: Final = clock
        self._on_replies = on_replies
        self.wire: Wire | None = None
        """None without an open connection."""
        self.opened_at = 0.0
        self.waiting: deque[Request] = deque()
        """The requests that were not sent."""
        self.calls: deque[Call] = deque()
        """The calls in progress, in the order of their replies."""
        self.last_reply_at = 0.0
        """When the last call was answered, or the first was written after a pause."""
        self.sent = 0
        """The number of requests in progress."""
        self._replies: list[Any] = []  # the replies to the first call so far
        self._overdue: asyncio.TimerHandle | None = None
        self._context = Context()  # for the timer, so that it does not keep a caller's context

    @property
    def size(self) -> int:
        """The number of requests without an answer."""
        return len(self.waiting) + self.sent

    def add(self, request: Request, now: float) -> None:
        """Add a request, and send it if it may be sent at once."""
        if self.wire is not None and not self.calls and not self.waiting:
            self._send([request], now)
            return
        self.waiting.append(request)
        # Further requests change nothing once the next batch is scheduled and not full.
        if self._overdue is None or len(self.waiting) >= MAX_BATCH:
            self.flush()

    def put_back(self, requests: Sequence[Request]) -> None:
        """Add requests that were not executed, before those that came after them."""
        self.waiting.extendleft(reversed(requests))

    def start(self, wire: Wire) -> None:
        """Start to send over this wire."""
        self.wire = wire
        self.opened_at = self.clock.now()
        self.flush()

    def stop(self) -> list[Request]:
        """Close the wire; return the requests in progress, whose outcome is unknown."""
        if self.wire is not None:
            self.wire.close()
        self.wire = None
        sent = [request for call in self.calls for request in call.requests]
        self.calls.clear()
        self._replies = []
        self.sent = 0
        return sent

    def take_waiting(self) -> list[Request]:
        """Remove and return the requests that were not sent."""
        requests = list(self.waiting)
        self.waiting.clear()
        return requests

    def close(self) -> list[Request]:
        """Stop everything, also the timers; return all requests without an answer."""
        self.clock.stop()
        if self._overdue is not None:
            self._overdue.cancel()
        self._overdue = None
        return [*self.stop(), *self.take_waiting()]

    def expired(self, now: float) -> tuple[list[Request], list[Request]]:
        """The requests in progress that have timed out, and those that wait, which are removed."""
        sent = [each for call in self.calls for each in call.requests if each.deadline <= now]
        unsent = [each for each in self.waiting if each.deadline <= now]
        if unsent:
            self.waiting = deque(each for each in self.waiting if each.deadline > now)
        return sent, unsent

    def received(self, reply: Any) -> None:
        """Handle a reply.

        Raises:
            StorageError: The replies are out of step.
        """
        if not self.calls:
            raise StorageError("a reply without a request")
        call = self.calls[0]
        if call.replies == 1:
            replies = [reply]
        else:
            self._replies.append(reply)
            if len(self._replies) < call.replies:
                return
            replies, self._replies = self._replies, []
        self.calls.popleft()
        self.sent -= len(call.requests)
        self.last_reply_at = self.clock.now()
        self._on_replies(call, replies)
        if self.waiting:
            self.flush()

    def write(self, calls: Sequence[Call], now: float | None = None) -> None:
        """Write calls, at a time that is known or looked up."""
        if self.wire is None or not calls:
            return
        if now is None:
            now = self.clock.now()
        if not self.calls:
            self.last_reply_at = now
        for call in calls:
            call.sent = now
            self.sent += len(call.requests)
        self.calls += calls
        if len(calls) == 1:
            self.wire.write(calls[0].data, calls[0].replies)
        else:
            data = b"".join([call.data for call in calls])
            self.wire.write(data, sum(call.replies for call in calls))

    def flush(self) -> None:
        """Send what may be sent at once, and schedule the rest."""
        while self.waiting and self.wire is not None:
            if self.calls and len(self.waiting) < MAX_BATCH:
                if self._overdue is None:
                    loop = asyncio.get_running_loop()
                    self._overdue = loop.call_later(
                        GATHER, self._send_overdue, context=self._context
                    )
                return
            self._send_batch()

    def _send_overdue(self) -> None:
        """Send what waits, although something is in progress."""
        self._overdue = None
        if self.wire is not None and self.waiting:
            self._send_batch()

    def _send_batch(self) -> None:
        size = min(len(self.waiting), MAX_BATCH)
        batch = [self.waiting.popleft() for _ in range(size)]
        # The others gave up before they were charged.
        self._send([request for request in batch if not request.future.done()])

    def _send(self, batch: list[Request], now: float | None = None) -> None:
        try:
            self.write(self._codec.calls(batch), now)
        except Exception as error:  # a bug in the codec; other requests are not affected
            answer_all(batch, error)
