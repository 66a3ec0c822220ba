"""Batches: which requests wait for a server, which are on their way, and what is sent together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from operator import attrgetter
from typing import Any, Final

from bot_ratelimit.errors import NotConnectedError, StorageError
from bot_ratelimit.storage.redis.clock import ListeningClock
from bot_ratelimit.storage.redis.codec import DecisionCodec
from bot_ratelimit.storage.redis.latency import Latency
from bot_ratelimit.storage.redis.request import Call, Request, answer_all
from bot_ratelimit.storage.redis.wire import Wire

MAX_WEIGHT: Final = 256
"""The maximum weight of a batch. It occupies the server for less than a millisecond; see
`DecisionCodec.weigh`."""
SPLIT: Final = 64
"""With this many waiting, half is sent: the server works on it while the rest gathers."""
_HALF: Final = SPLIT // 2
GATHER: Final = 0.001
"""The longest time in seconds that requests are gathered while batches are in progress."""


class Batches:
    """Sends requests over one wire, together where that costs nobody time.

    A request is sent at once if no batch is in progress. Otherwise it is sent together with others
    as soon as one of these is true:

    - the batch in progress is answered;
    - the waiting requests fill a batch;
    - half of a batch has gathered beside the only batch in progress;
    - it has waited for a millisecond: the server is far away.

    So batches grow under load, and several can be in progress to a distant server. Replies come in
    the order of the commands. A reply that no caller waits for any more is read all the same, so
    the wire stays in step.

    Args:
        codec: Encodes requests.
        clock: The clock of time-outs.
        latency: Tells whether the last answer came too late.
        on_replies: Called with a call and all replies to it.
    """

    def __init__(
        self,
        codec: DecisionCodec,
        clock: ListeningClock,
        latency: Latency,
        on_replies: Callable[[Call, list[Any]], None],
    ) -> None:
        self._codec = codec
        self.clock: Final = clock
        self._latency = latency
        self._on_replies = on_replies
        self.wire: Wire | None = None
        """None without an open connection."""
        self.opened_at = 0.0
        self.waiting: deque[Request] = deque()
        """The requests that were not sent."""
        self.calls: deque[Call] = deque()
        """The calls in progress, in the order of their replies."""
        self.last_reply_at = 0.0
        """When the last batch was answered, or the first was written after a pause."""
        self.sent = 0
        """The number of requests in progress."""
        self._count = 0  # the number of requests so far
        self._batches = 0  # the number of batches in progress
        self._weight = 0  # of those that wait
        self._began_at = 0.0  # when nothing waited for the last time
        self._replies: list[Any] = []  # the replies to the first call so far
        self._gathering: asyncio.Handle | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._context = Context()  # for timers, so that they do not keep a caller's context

    @property
    def size(self) -> int:
        """The number of requests without an answer."""
        return len(self.waiting) + self.sent

    @property
    def is_idle(self) -> bool:
        """Whether no request waits, and no call is in progress."""
        return not (self.waiting or self.calls)

    def add(self, request: Request, now: float) -> None:
        """Add a request, and send it if it may be sent at once."""
        self._count += 1
        request.number = self._count
        if not self.waiting:
            if self.wire is not None and not self._batches:
                self._send([request], now)
                return
            self._began_at = now
        self.waiting.append(request)
        self._weight += request.weight
        # Further requests change nothing once the next batch is scheduled and not full.
        if self._overdue is None or self._weight >= MAX_WEIGHT or len(self.waiting) == _HALF:
            self.flush()

    def put_back(self, requests: Sequence[Request]) -> None:
        """Add requests that were not executed, before those that came after them."""
        self._weight += sum(request.weight for request in requests)
        self.waiting = deque(sorted([*requests, *self.waiting], key=_NUMBER))

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
        self.sent = self._batches = 0
        return sent

    def take_waiting(self) -> list[Request]:
        """Remove and return the requests that were not sent."""
        requests = list(self.waiting)
        self.waiting.clear()
        self._weight = 0
        return requests

    def close(self) -> list[Request]:
        """Stop everything, also the timers; return all requests without an answer."""
        for timer in (self._gathering, self._overdue):
            if timer is not None:
                timer.cancel()
        return [*self.stop(), *self.take_waiting()]

    def expire(self, now: float, where: str) -> None:
        """Answer the requests that have timed out, and forget those that were not sent.

        Args:
            now: The time.
            where: The server, for the error.
        """
        for call in self.calls:
            if call.deadline is None:
                call.deadline = min((each.deadline for each in call.requests), default=now)
            if call.deadline <= now:
                self._expire(call.requests, now, where)
        self._expire(self.waiting, now, where, connected=self.wire is not None)
        while self.waiting and self.waiting[0].future.done():
            self._weight -= self.waiting.popleft().weight

    def _expire(
        self, requests: Iterable[Request], now: float, where: str, *, connected: bool = True
    ) -> None:
        """Answer those that have timed out; without a connection they were certainly not sent."""
        late = self._latency.late
        for request in requests:
            if request.deadline > now or request.future.done():
                continue
            timeout = request.timeout
            error = StorageError(f"no answer from {where} within {timeout:g} s", kind="timeout")
            if not connected:
                error = NotConnectedError(f"not connected to {where} within {timeout:g} s")
            elif late is not None:
                text = f"{where} takes {late:.2f} s to answer, the timeout is {timeout:g} s"
                error = StorageError(text, kind="timeout")
            request.answer(error)

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
        if call.ends_batch:
            self._batches -= 1
            self.last_reply_at = self.clock.now()
        self._on_replies(call, replies)
        if call.ends_batch or self._weight >= MAX_WEIGHT:
            self.flush()

    def write(self, calls: Sequence[Call], now: float | None = None) -> None:
        """Write one batch, at a time that is known or looked up."""
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
        calls[-1].ends_batch = True
        self._batches += 1
        if len(calls) == 1:
            self.wire.write(calls[0].data, calls[0].replies)
        else:
            data = b"".join([call.data for call in calls])
            self.wire.write(data, sum(call.replies for call in calls))

    def flush(self) -> None:
        """Send what may be sent at once, and schedule the rest."""
        while self.waiting and self.wire is not None:
            if self._batches and self._weight < MAX_WEIGHT:
                self._schedule()
                return
            self._send_half()

    def _schedule(self) -> None:
        if self._gathering is None and self._batches == 1 and len(self.waiting) >= _HALF:
            # Callers that get their answers in this turn of the loop usually ask again in the same
            # turn.
            loop = asyncio.get_running_loop()
            self._gathering = loop.call_soon(self._send_gathered, context=self._context)
        if self._overdue is None:
            self._send_overdue_in(GATHER)

    def _send_gathered(self) -> None:
        self._gathering = None
        # The connection may have been lost since: the next one sends what waits.
        if self.wire is not None and self.waiting and self._batches < 2:
            self._send_half()
            self.flush()

    def _send_overdue_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._overdue = loop.call_later(seconds, self._send_overdue, context=self._context)

    def _send_overdue(self) -> None:
        """Send what has waited long enough, beside a batch in progress: the server is far away."""
        self._overdue = None
        if self.wire is None or not self.waiting:
            return
        wait = self._began_at + GATHER - self.clock.now()
        if wait > 0:
            self._send_overdue_in(wait)
            return
        while self.waiting and self.wire is not None:
            self._send(self._taken(len(self.waiting)))

    def _send_half(self) -> None:
        """Send half of all requests that have no answer, or all of them if they are few."""
        total = len(self.waiting) + self.sent
        self._send(self._taken(total if total < SPLIT else (total + 1) // 2))

    def _taken(self, size: int) -> list[Request]:
        """Take the first `size` requests, or fewer if they are too heavy for one batch."""
        if self._weight <= MAX_WEIGHT and len(self.waiting) <= size:
            return [request for request in self.take_waiting() if not request.future.done()]
        weight = 0
        batch: list[Request] = []
        while self.waiting and len(batch) < size:
            request = self.waiting[0]
            if batch and weight + request.weight > MAX_WEIGHT:
                break
            self.waiting.popleft()
            self._weight -= request.weight
            if not request.future.done():  # else its caller gave up before it was charged
                weight += request.weight
                batch.append(request)
        return batch

    def _send(self, batch: list[Request], now: float | None = None) -> None:
        try:
            self.write(self._codec.calls(batch), now)
        except Exception as error:  # a bug in the codec; other requests are not affected
            answer_all(batch, error)


_NUMBER: Final = attrgetter("number")
