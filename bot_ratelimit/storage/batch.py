"""Batcher: hits that arrive together travel together."""

from __future__ import annotations

import asyncio
from collections import deque
from operator import attrgetter
from typing import Final, Generic, TypeVar

from bot_ratelimit.errors import StorageError
from bot_ratelimit.storage.carrier import Carrier, Line
from bot_ratelimit.storage.deadline import Deadline, Deadlines

Item = TypeVar("Item")
Answer = TypeVar("Answer")

SPLIT: Final = 16
"""When so many wait, they leave in halves: one is decided while the other is dealt with here."""


class _Waiting(Generic[Item, Answer]):
    """Somebody who waits for an answer."""

    __slots__ = ("at", "future", "item", "timeout")

    def __init__(
        self, item: Item, future: asyncio.Future[Answer], timeout: float, now: float
    ) -> None:
        self.item = item
        self.future = future
        self.timeout = timeout
        self.at = now + timeout

    def done(self) -> bool:
        return self.future.done()

    def ring(self) -> None:
        self.answer(_too_late(self.timeout))

    def answer(self, answer: Answer | Exception) -> None:
        if self.future.done():
            return
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class _Batch(Generic[Item, Answer]):
    """Those who are asked for together."""

    __slots__ = ("at", "commands", "items", "waiting")

    def __init__(self, waiting: list[_Waiting[Item, Answer]]) -> None:
        self.waiting = waiting
        self.items = [each.item for each in waiting]
        self.at = max(map(attrgetter("at"), waiting))
        self.commands = 0


class Batcher(Generic[Item, Answer]):
    """Sends together what was asked for together.

    Nothing is ever held back to fill a batch. With nothing under way an item leaves at once,
    alone, in its caller's own task; under load the batches grow by themselves to what arrives in
    one round trip, and a task of their own sends them until nobody waits any more. When many
    wait, there are two batches under way: the server decides one of them while those who were
    in the other go on with their answers and ask again.

    Args:
        carrier: Takes the batches to the server.
        max_weight: The most work in a batch of several, so that the server is not held up by it.
        max_waiting: The most items that wait; one more is refused with StorageError.
    """

    def __init__(
        self,
        carrier: Carrier[Item, Answer],
        *,
        max_weight: int,
        max_waiting: int,
    ) -> None:
        self._carrier = carrier
        self._max_weight = max_weight
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting[Item, Answer]] = deque()
        self._busy = False
        self._sender: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deadlines: Deadlines  # of those who ask
        self._turns: Deadlines  # of the sender's steps

    async def submit(self, item: Item, timeout: float) -> Answer:
        """The answer to this item, at most `timeout` seconds from now.

        Raises:
            StorageError: It took too long, or too many are waiting.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another asyncio.run(): what was under way in the last is lost
            self._loop, self._busy, self._sender = loop, False, None
            self._waiting.clear()
            self._deadlines, self._turns = Deadlines(loop), Deadlines(loop)
        if self._busy:
            return await self._queued(item, loop, timeout)
        self._busy = True
        items = (item,)
        answers = None
        try:
            with Deadline(loop.time() + timeout, self._deadlines):
                line = await self._carrier.connect()
                try:
                    while answers is None:
                        commands = self._carrier.pack(items)
                        await line.send(commands)
                        replies = await line.receive(len(commands))
                        answers = await self._carrier.unpack(line, items, replies)
                finally:
                    await line.release()
        except TimeoutError:
            raise _too_late(timeout) from None
        except Exception as error:
            raise self._carrier.explain(error) from error
        finally:
            self._go_on(loop)
        (answer,) = answers
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        """Stop sending; whoever still waits gets a StorageError."""
        while self._waiting:
            self._waiting.popleft().answer(_closed())
        sender = self._sender
        if sender is not None and self._loop is asyncio.get_running_loop():
            sender.cancel()
            await asyncio.wait([sender])

    def _queued(
        self, item: Item, loop: asyncio.AbstractEventLoop, timeout: float
    ) -> asyncio.Future[Answer]:
        if len(self._waiting) >= self._max_waiting:
            raise StorageError(f"{len(self._waiting)} decisions are waiting for Redis already")
        future: asyncio.Future[Answer] = loop.create_future()
        waiting = _Waiting(item, future, timeout, loop.time())
        self._waiting.append(waiting)
        # Its deadline counts from here, also while it waits for its batch.
        self._deadlines.add(waiting)
        return future

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Whoever was sending is done: send for those who asked meanwhile, if any."""
        if loop is not self._loop:
            return  # what an earlier loop left behind ends only now
        self._busy, self._sender = False, None
        if self._waiting:
            self._busy, self._sender = True, loop.create_task(self._drain())
            # Not the task's own last act, since one cancelled before its first step has none.
            self._sender.add_done_callback(self._drained)

    def _drained(self, sender: asyncio.Task[None]) -> None:
        if sender is self._sender:
            self._go_on(sender.get_loop())

    async def _drain(self) -> None:
        while batch := self._next_batch(halve=True):
            await self._converse(batch)
            await asyncio.sleep(0)  # let others have the connection, if the pool has no more

    def _next_batch(self, *, halve: bool) -> _Batch[Item, Answer] | None:
        waiting: list[_Waiting[Item, Answer]] = []
        weight, size = 0, len(self._waiting)
        if halve and size >= SPLIT and self._carrier.depth > 1:
            size //= 2
        while self._waiting and len(waiting) < size:
            one = self._waiting[0]
            if not one.future.done():  # else its caller gave up before anything was charged
                weight += self._carrier.weigh(one.item)
                if waiting and weight > self._max_weight:
                    break
                waiting.append(one)
            self._waiting.popleft()
        return _Batch(waiting) if waiting else None

    async def _converse(self, first: _Batch[Item, Answer]) -> None:
        """Send this batch, and those that follow it, on one connection."""
        under_way = deque([first])
        outcome: Exception = _closed()  # for when this task is cancelled
        try:
            with self._in_time(under_way):
                line = await self._carrier.connect()
            try:
                await self._send(line, under_way)
                await self._send_more(line, under_way)
                while under_way:
                    await self._receive(line, under_way)
                    await self._send_more(line, under_way)
            finally:
                await line.release()
        except TimeoutError:
            outcome = StorageError("no answer in time")
        except Exception as error:
            outcome = self._carrier.explain(error)
        finally:
            for batch in under_way:
                for waiting in batch.waiting:
                    waiting.answer(outcome)

    async def _send_more(self, line: Line, under_way: deque[_Batch[Item, Answer]]) -> None:
        while len(under_way) < self._carrier.depth and not line.spent:
            batch = self._next_batch(halve=not under_way)
            if batch is None:
                return
            under_way.append(batch)
            await self._send(line, under_way)

    async def _send(self, line: Line, under_way: deque[_Batch[Item, Answer]]) -> None:
        """Send the newest batch."""
        batch = under_way[-1]
        commands = self._carrier.pack(batch.items)
        batch.commands = len(commands)
        with self._in_time(under_way):
            await line.send(commands)

    async def _receive(self, line: Line, under_way: deque[_Batch[Item, Answer]]) -> None:
        """Hand out the answers of the oldest batch."""
        batch = under_way[0]
        with self._in_time(under_way):
            replies = await line.receive(batch.commands)
            answers = await self._carrier.unpack(line, batch.items, replies)
        under_way.popleft()
        if answers is None:
            self._waiting.extendleft(reversed(batch.waiting))
            return
        for waiting, answer in zip(batch.waiting, answers, strict=True):
            waiting.answer(answer)
        self._deadlines.forget_done()
        await asyncio.sleep(0)  # they go on, and may ask again at once

    def _in_time(self, under_way: deque[_Batch[Item, Answer]]) -> Deadline:
        """Until nobody waits for this any more; each one's own alarm rings before."""
        return Deadline(max(batch.at for batch in under_way), self._turns)


def _too_late(timeout: float) -> StorageError:
    return StorageError(f"no answer within {timeout:g} s")


def _closed() -> StorageError:
    return StorageError("the storage was closed")
