"""Queues: callers in this process that wait for the same thing, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Final

from bot_ratelimit.storage.loops import PerLoop


class Turn:
    """The turn of one caller in a queue."""

    __slots__ = ("_woken", "is_closed", "is_first")

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self.is_first = False
        """Whether it is this caller's turn to ask."""
        self.is_closed = False
        """Whether the queue was closed meanwhile, so that nobody goes on waiting."""

    def wake(self) -> None:
        """End the caller's sleep."""
        self._woken.set()

    async def sleep(self, seconds: float) -> bool:
        """Sleep until woken; return False if that does not happen within these seconds."""
        try:
            async with asyncio.timeout(None if seconds == float("inf") else max(seconds, 0.0)):
                await self._woken.wait()
        except TimeoutError:
            return False
        self._woken.clear()
        return True


class Queues:
    """A queue for each key. Only its first caller asks; the others sleep until it is their turn.

    Args:
        longest: How many may wait in all queues together.
    """

    def __init__(self, longest: int) -> None:
        self._longest: Final = longest
        self.closed = 0
        """How often it was closed."""
        # Callers of an event loop that has ended never leave.
        self._queues = PerLoop[dict[Hashable, deque[Turn]]](dict)
        self._waiting = PerLoop[set[Turn]](set)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting.get())

    def has_room(self) -> bool:
        """Whether one more may wait."""
        return len(self) < self._longest

    def is_busy(self, key: Hashable) -> bool:
        """Whether somebody waits for this key."""
        return key in self._queues.get()

    @asynccontextmanager
    async def turn(self, key: Hashable, seconds: float) -> AsyncIterator[Turn]:
        """Wait for `seconds` at most in the queue of this key; `is_first` if it is one's turn."""
        queues, everybody = self._queues.get(), self._waiting.get()
        queue, waiting = queues.setdefault(key, deque()), Turn()
        queue.append(waiting)
        everybody.add(waiting)
        time = asyncio.get_running_loop().time
        until = time() + seconds
        try:
            while queue[0] is not waiting and not waiting.is_closed:
                if not await waiting.sleep(until - time()):
                    break
            waiting.is_first = queue[0] is waiting and not waiting.is_closed
            yield waiting
        finally:
            everybody.discard(waiting)
            was_first = queue[0] is waiting
            queue.remove(waiting)
            if queue and was_first:
                queue[0].wake()
            elif not queue and queues.get(key) is queue:
                del queues[key]

    def wake(self, key: Hashable) -> None:
        """Let the first of this queue ask now."""
        queue = self._queues.get().get(key)
        if queue:
            queue[0].wake()

    def close(self) -> None:
        """Let nobody wait any longer."""
        self.closed += 1
        for waiting in self._waiting.get():
            waiting.is_closed = True
            waiting.wake()
