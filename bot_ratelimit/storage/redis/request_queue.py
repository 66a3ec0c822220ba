"""RequestQueue: the requests that wait to be sent, when they are sent, and how many together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from operator import attrgetter
from typing import Final, Generic

from bot_ratelimit.storage.redis.latency import Latency
from bot_ratelimit.storage.redis.pipeline import Pipeline
from bot_ratelimit.storage.redis.request import Item, Request

MAX_WEIGHT: Final = 256
"""The maximum weight of a batch. It occupies the server for less than a millisecond; see
`DecisionCodec.weigh`."""
SPLIT: Final = 16
"""From this many waiting requests on, they are sent in halves: the server decides one half while
this process handles the other."""
GATHER: Final = (0.01, 0.001)
"""The longest time in seconds that requests are gathered while batches are in progress: for a near
and for a far server."""


class RequestQueue(Generic[Item]):
    """Gathers requests into batches.

    A request is sent at once if no batch is in progress. Otherwise it is sent together with others
    as soon as one of these is true:

    - the batch in progress is answered;
    - the waiting requests fill a batch;
    - half of a batch has gathered beside the only batch in progress;
    - it has waited for a few milliseconds, because the server is far away.

    So batches grow under load, and several can be in progress to a distant server.

    Args:
        send: Sends a batch.
        latency: Tells whether the server is far away.
    """

    def __init__(self, send: Callable[[Sequence[Request[Item]]], None], latency: Latency) -> None:
        self.requests: deque[Request[Item]] = deque()
        """All that wait, in their order; change them only by the methods."""
        self._send = send
        self._latency = latency
        self._pipeline: Pipeline[Item] | None = None
        self._count = 0  # the number of requests so far
        self._weight = 0  # of those that wait
        self._began_at = 0.0  # when the queue was last empty
        self._gathering: asyncio.Handle | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._context = Context()  # for timers, so that they do not keep a caller's context

    @property
    def fills_batch(self) -> bool:
        """Whether so much waits that it is sent whatever is in progress."""
        return self._weight >= MAX_WEIGHT

    def add(self, request: Request[Item], now: float) -> None:
        """Add a request at the end, and send it if it may be sent at once."""
        if not self.requests:
            self._began_at = now
        self._count += 1
        request.number = self._count
        self.requests.append(request)
        self._weight += request.weight
        if self._pipeline is not None:
            self.flush()

    def put_back(self, requests: Sequence[Request[Item]]) -> None:
        """Add requests that were not executed, before those that came after them."""
        self._weight += sum(request.weight for request in requests)
        self.requests = deque(sorted([*requests, *self.requests], key=_NUMBER))

    def take_all(self) -> list[Request[Item]]:
        """Remove and return all requests."""
        requests = list(self.requests)
        self.requests.clear()
        self._weight = 0
        return requests

    def drop_answered(self) -> None:
        """Remove the requests at the head that were given up, or that timed out."""
        while self.requests and self.requests[0].future.done():
            self._weight -= self.requests.popleft().weight

    def resume(self, pipeline: Pipeline[Item]) -> None:
        """Start to send: the connection is open."""
        self._pipeline = pipeline
        self.flush()

    def pause(self) -> None:
        """Send nothing until `resume`: there is no connection."""
        self._pipeline = None

    def close(self) -> None:
        """Stop the timers."""
        for timer in (self._gathering, self._overdue):
            if timer is not None:
                timer.cancel()

    def flush(self) -> None:
        """Send what may be sent at once, and schedule the rest."""
        while self.requests:
            pipeline = self._pipeline
            if pipeline is None:
                return
            if pipeline.batches and self._weight < MAX_WEIGHT:
                self._schedule(pipeline)
                return
            self._send_half(pipeline)

    def _schedule(self, pipeline: Pipeline[Item]) -> None:
        if self._gathering is None and pipeline.batches == 1 and len(self.requests) >= SPLIT // 2:
            # Callers that get their answers in this turn of the loop usually ask again in the same
            # turn.
            loop = asyncio.get_running_loop()
            self._gathering = loop.call_soon(self._send_gathered, context=self._context)
        if self._overdue is None:
            self._send_overdue_in(GATHER[self._latency.is_far])

    def _send_gathered(self) -> None:
        self._gathering = None
        pipeline = self._pipeline
        if pipeline is not None and self.requests and pipeline.batches < 2:
            self._send_half(pipeline)
            self.flush()

    def _send_overdue_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._overdue = loop.call_later(seconds, self._send_overdue, context=self._context)

    def _send_overdue(self) -> None:
        """Send what has waited long enough, beside a batch in progress: the server is far away."""
        self._overdue = None
        if self._pipeline is None or not self.requests:
            return
        wait = self._began_at + GATHER[self._latency.is_far] - self._pipeline.clock.now()
        if wait > 0:
            self._send_overdue_in(wait)
            return
        while self.requests and self._pipeline is not None:
            self._send_batch(len(self.requests))

    def _send_half(self, pipeline: Pipeline[Item]) -> None:
        """Send half of all requests that have no answer, or all of them if they are few."""
        total = len(self.requests) + pipeline.waiting
        self._send_batch(total if total < SPLIT else (total + 1) // 2)

    def _send_batch(self, size: int) -> None:
        """Send the first `size` requests, or fewer if they are too heavy for one batch."""
        weight = 0
        batch: list[Request[Item]] = []
        while self.requests and len(batch) < size:
            request = self.requests[0]
            if batch and weight + request.weight > MAX_WEIGHT:
                break
            self.requests.popleft()
            self._weight -= request.weight
            if not request.future.done():  # else its caller gave up before it was charged
                weight += request.weight
                batch.append(request)
        if batch:
            self._send(batch)


_NUMBER: Final = attrgetter("number")
