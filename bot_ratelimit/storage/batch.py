"""Batcher: hits that arrive together travel together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from bot_ratelimit.errors import StorageError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class _Waiting(Generic[Item, Answer]):
    __slots__ = ("deadline", "future", "item")

    def __init__(self, item: Item, future: asyncio.Future[Answer], deadline: float) -> None:
        self.item = item
        self.future = future
        self.deadline = deadline


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
        if self._busy:
            return await self._queue(item, loop, timeout)
        self._busy = True
        try:
            async with asyncio.timeout(timeout):
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

    async def _queue(self, item: Item, loop: asyncio.AbstractEventLoop, timeout: float) -> Answer:
        if len(self._waiting) >= self._max_waiting:
            raise StorageError(f"{len(self._waiting)} decisions are waiting for Redis already")
        future: asyncio.Future[Answer] = loop.create_future()
        waiting = _Waiting(item, future, loop.time() + timeout)
        self._waiting.append(waiting)
        # The deadline counts from here, also while the item waits for its batch.
        alarm = loop.call_at(waiting.deadline, _expire, future, timeout)
        try:
            return await future
        finally:
            alarm.cancel()

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
            async with asyncio.timeout_at(max(waiting.deadline for waiting in batch)):
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


def _too_late(timeout: float) -> StorageError:
    return StorageError(f"no answer within {timeout:g} s")


def _expire(future: asyncio.Future[Answer], timeout: float) -> None:
    _fail(future, _too_late(timeout))


def _fail(future: asyncio.Future[Answer], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
