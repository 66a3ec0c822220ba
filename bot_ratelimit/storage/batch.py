"""Batcher: hits that arrive together travel together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

from bot_ratelimit.errors import StorageError
from bot_ratelimit.storage.deadline import Deadline

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Waiting(Generic[Item, Answer]):
    __slots__ = ("deadline", "future", "item", "timeout")

    def __init__(
        self, item: Item, future: asyncio.Future[Answer], timeout: float, now: float
    ) -> None:
        self.item = item
        self.future = future
        self.timeout = timeout
        self.deadline = now + timeout


class Batcher(Generic[Item, Answer]):
    """Sends one batch at a time: what is asked for meanwhile makes up the next one.

    Nothing is ever held back to fill a batch. With nothing under way an item leaves at once,
    alone, in its caller's own task; under load the batches grow by themselves to what arrives in
    one round trip, and a task of their own sends them until nobody waits any more.

    Args:
        send: Takes the items of a batch and returns their answers in the same order; an answer
            that is an exception is raised to the one who asked.
        weigh: How much work an item is for the server.
        max_weight: The most work in a batch of several, so that the server is not held up by it.
        max_waiting: The most items that wait; one more is refused with StorageError.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        weigh: Callable[[Item], int],
        max_weight: int,
        max_waiting: int,
    ) -> None:
        self._send = send
        self._weigh = weigh
        self._max_weight = max_weight
        self._max_waiting = max_waiting
        self._deadlines = _Deadlines()
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._busy = False
        self._sender: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def submit(self, item: Item, timeout: float) -> Answer:
        """The answer to this item, at most `timeout` seconds from now.

        Raises:
            StorageError: It took too long, or too many are waiting.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another asyncio.run(): what was under way in the last is lost
            self._loop, self._busy = loop, False
            self._waiting.clear()
            self._deadlines = _Deadlines()
        if self._busy:
            return await self._queued(item, loop, timeout)
        self._busy = True
        try:
            with Deadline(loop.time() + timeout):
                (answer,) = await self._send([item])
        except TimeoutError:
            raise _too_late(timeout) from None
        finally:
            self._go_on(loop)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Stop sending; whoever still waits gets a StorageError."""
        while self._waiting:
            _fail(self._waiting.popleft().future, StorageError("the storage was closed"))
        sender = self._sender
        if sender is not None and self._loop is asyncio.get_running_loop():
            sender.cancel()
            await asyncio.wait([sender])
            if self._sender is sender:  # cancelled before its first step, so it cleaned up nothing
                self._sender = None
                self._go_on(self._loop)

    def _queued(
        self, item: Item, loop: asyncio.AbstractEventLoop, timeout: float
    ) -> asyncio.Future[Answer]:
        if len(self._waiting) >= self._max_waiting:
            raise StorageError(f"{len(self._waiting)} decisions are waiting for Redis already")
        future: asyncio.Future[Answer] = loop.create_future()
        waiting = _Waiting(item, future, timeout, loop.time())
        self._waiting.append(waiting)
        # Its deadline counts from here, also while it waits for its batch.
        self._deadlines.add(waiting, loop)
        return future

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever was sending is done: send for those who asked meanwhile, if any."""
        if self._waiting:
            self._sender = loop.create_task(self._drain(loop))
        else:
            self._busy = False

    async def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while batch := self._next_batch():
                await self._deliver(batch)
        finally:
            self._sender = None
            self._go_on(loop)

    def _next_batch(self) -> list[_Waiting[Item, Answer]]:
        batch: list[_Waiting[Item, Answer]] = []
        weight = 0
        while self._waiting:
            weight += self._weigh(self._waiting[0].item)
            if batch and weight > self._max_weight:
                break
            waiting = self._waiting.popleft()
            if not waiting.future.done():  # else its caller gave up before anything was charged
                batch.append(waiting)
        return batch

    async def _deliver(self, batch: list[_Waiting[Item, Answer]]) -> None:
        answers: Sequence[Answer | Exception]
        # Should nobody get an answer below, as when this task is cancelled.
        answers = [StorageError("the storage was closed")] * len(batch)
        try:
            # The last one to ask has the latest deadline; the others' alarms ring before.
            with Deadline(max(waiting.deadline for waiting in batch)):
                answers = await self._send([waiting.item for waiting in batch])
        except TimeoutError:
            answers = [StorageError("no answer in time")] * len(batch)
        except Exception as error:
            answers = [error] * len(batch)
        finally:
            for waiting, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    _fail(waiting.future, answer)
                elif not waiting.future.done():
                    waiting.future.set_result(answer)
            self._deadlines.forget_done()


class _Deadlines:
    """Fails the futures that are not done in time: one timer for all of them.

    A timer for each would be much of what a decision in a batch costs. Deadlines come in order,
    unless two limiters with different time-outs share a storage.
    """

    def __init__(self) -> None:
        self._due: deque[_Waiting[Any, Any]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, waiting: _Waiting[Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        overtakes = self._due and waiting.deadline < self._due[-1].deadline
        self._due.append(waiting)
        if overtakes:
            self._due = deque(sorted(self._due, key=attrgetter("deadline")))
        if self._timer is None or waiting.deadline < self._timer.when():
            self._arm(waiting.deadline, loop)

    def forget_done(self) -> None:
        while self._due and self._due[0].future.done():
            self._due.popleft()

    def _arm(self, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(deadline, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        while self._due and self._due[0].deadline <= loop.time():
            late = self._due.popleft()
            _fail(late.future, _too_late(late.timeout))
        self.forget_done()
        if self._due:
            self._arm(self._due[0].deadline, loop)


def _too_late(timeout: float) -> StorageError:
    return StorageError(f"no answer within {timeout:g} s")


def _fail(future: asyncio.Future[Answer], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
